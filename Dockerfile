# The agent's image: the two static programs that `make build` leaves in bin/,
# and nothing else, not even a shell. There is no stage that builds them,
# since a machine that builds this may have no registry to pull Go from.
FROM scratch
COPY bin/ambassador bin/linkrun /

# Nobody, which is enough for the commands that only carry connections between
# hosts. `serve` needs root and the engine's socket: run it on the host itself,
# see packaging/, rather than giving a container either.
USER 65534:65534

ENTRYPOINT ["/ambassador"]
