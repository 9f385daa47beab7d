// Package identity says who a host is: its SPIFFE name, the certificate that
// proves it, the trust in those of others, and the small authority that issues
// them. It opens no connection, and does not decide who may connect where.
package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// ID is the name of a host within its trust domain.
type ID struct {
	Domain string // lower-case letters, digits, '.', '-' and '_'
	Host   string // letters, digits, '.', '-' and '_'
}

// String is the ID's SPIFFE form: spiffe://DOMAIN/host/HOST.
func (id ID) String() string { return "spiffe://" + id.Domain + "/host/" + id.Host }

// Validate tells what is wrong with id.
func (id ID) Validate() error {
	// The bounds of a SPIFFE ID's parts are in SPIFFE-ID.md, sections 2.1 to 2.3.
	switch {
	case id.Domain == "" || len(id.Domain) > 255 || strings.Trim(id.Domain, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "":
		return fmt.Errorf("%q is not a trust domain: it has lower-case letters, digits, '.', '-' and '_'", id.Domain)
	case id.Host == "" || len(id.Host) > 255 || strings.Trim(id.Host, nameCharacters) != "" || strings.Trim(id.Host, ".") == "":
		return fmt.Errorf("%q is not a host's name: it has letters, digits, '.', '-' and '_'", id.Host)
	}
	return nil
}

const nameCharacters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"

// ParseID reads the SPIFFE form.
func ParseID(s string) (ID, error) {
	id, err := parseID(s)
	if err != nil {
		return ID{}, fmt.Errorf("parsing identity %q: %w", s, err)
	}
	return id, nil
}

func parseID(s string) (ID, error) {
	rest, ok := strings.CutPrefix(s, "spiffe://")
	domain, host, found := strings.Cut(rest, "/host/")
	if !ok || !found || strings.Contains(host, "/") {
		return ID{}, errors.New("it is not of the form spiffe://DOMAIN/host/NAME")
	}
	id := ID{domain, host}
	return id, id.Validate()
}

// IDOf is the ID that a certificate is for. There has to be exactly one URI in
// it: whoever picks one of several can be made to pick the wrong one.
func IDOf(cert *x509.Certificate) (ID, error) {
	if n := len(cert.URIs); n != 1 {
		return ID{}, fmt.Errorf("the certificate has %d URIs, not exactly one", n)
	}
	return ParseID(cert.URIs[0].String())
}

func (id ID) url() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.Domain, Path: "/host/" + id.Host}
}
