# The agent's image: the two static programs that `make build` leaves in bin/,
# and nothing else, not even a shell. There is no stage that builds them,
# since a machine that builds this may have no registry to pull Go from.
FROM scratch
COPY bin/ambassador bin/linkrun /

# Empty, and a new volume mounted here is nobody's too: two sidecars meet at a
# unix socket in it.
COPY --chown=65534:65534 bin/link /run/link

# Nobody, which is enough for the commands that only carry connections, `source`,
# `recipient` and `env`. `serve` needs root and the engine's socket: run it on
# the host itself, see packaging/, rather than giving a container either.
USER 65534:65534

# Without a command it is the classic ambassador container.
ENTRYPOINT ["/ambassador"]
CMD ["env"]
