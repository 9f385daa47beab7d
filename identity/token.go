package identity

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// TokenLife is how long a token is good for unless something else is said.
const TokenLife = time.Hour

// Token lets one host join, once, and tells it which authority to believe.
type Token struct {
	pin     [sha256.Size]byte // of the public key of the root that signs
	number  [8]byte
	secret  [16]byte
	Expires time.Time
}

const tokenPrefix = "ambassador1."

// tokenSize is what Encode packs: pin, number, secret, seconds, and a checksum
// which tells a token that was copied badly from one that is not known.
const tokenSize = sha256.Size + 8 + 16 + 4 + 4

// Encode is the token as one types it. It is a secret.
func (t Token) Encode() string {
	b := append([]byte(nil), t.pin[:]...)
	b = append(b, t.number[:]...)
	b = append(b, t.secret[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(t.Expires.Unix()))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads what Encode has written. The error does not repeat it.
func ParseToken(s string) (Token, error) {
	body, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("parsing a token: it does not begin with %q", tokenPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || len(b) != tokenSize || crc32.ChecksumIEEE(b[:tokenSize-4]) != binary.BigEndian.Uint32(b[tokenSize-4:]) {
		return Token{}, errors.New("parsing a token: it is not complete, or was changed")
	}
	var t Token
	b = b[copy(t.pin[:], b):]
	b = b[copy(t.number[:], b):]
	b = b[copy(t.secret[:], b):]
	t.Expires = time.Unix(int64(binary.BigEndian.Uint32(b)), 0)
	return t, nil
}

// Number is what a token is called in public.
func (t Token) Number() string { return hex.EncodeToString(t.number[:]) }

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.Number()) }

// Format keeps it out of everything that is printed, whatever the verb.
func (t Token) Format(f fmt.State, _ rune) { fmt.Fprint(f, "token ", t.Number()) }

// pins tells whether a root is the one the token tells to believe.
func (t Token) pins(root *x509.Certificate) bool {
	return t.pin == sha256.Sum256(root.RawSubjectPublicKeyInfo)
}

// proof shows, on one connection, that whoever asks for csr has the token.
func (t Token) proof(binding, csr []byte) []byte {
	mac := hmac.New(sha256.New, t.secret[:])
	mac.Write([]byte("ambassador join 1"))
	mac.Write(binding) // of a fixed length
	mac.Write(csr)
	return mac.Sum(nil)
}

// issuedToken is what the authority remembers of a token.
type issuedToken struct {
	Host    string    `json:"host"`
	Secret  []byte    `json:"secret"`
	Expires time.Time `json:"expires"`
	Used    time.Time `json:"used,omitzero"`
	UsedBy  string    `json:"used_by,omitempty"` // address
}

// forgetAfter is how long a token is remembered after its end, so that whoever
// tries it can be told what is wrong.
const forgetAfter = 7 * 24 * time.Hour

func (a *Authority) tokenFile() string { return filepath.Join(a.dir, "tokens.json") }

// NewToken makes a token for a host, good for life.
func (a *Authority) NewToken(host string, life time.Duration) (Token, error) {
	fail := func(err error) (Token, error) { return Token{}, fmt.Errorf("making a token for %q: %w", host, err) }
	if err := (ID{a.Domain, host}).Validate(); err != nil {
		return fail(err)
	}
	s, err := a.load()
	if err != nil {
		return fail(err)
	}
	signer, _, err := s.signer(a.now())
	if err != nil {
		return fail(err)
	}
	t := Token{
		pin:     sha256.Sum256(signer.RawSubjectPublicKeyInfo),
		Expires: a.now().Add(life).Truncate(time.Second),
	}
	rand.Read(t.number[:])
	rand.Read(t.secret[:])
	err = a.withTokens(func(tokens map[string]*issuedToken) error {
		tokens[t.Number()] = &issuedToken{Host: host, Secret: t.secret[:], Expires: t.Expires}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	return t, nil
}

// redeem marks a token as used, by whoever is at from, and returns the host
// it is for. Of two that come at a time, one is too late.
func (a *Authority) redeem(number string, proof func(Token) []byte, got []byte, from string) (host string, err error) {
	err = a.withTokens(func(tokens map[string]*issuedToken) error {
		issued := tokens[number]
		if issued == nil {
			return fmt.Errorf("token %.16q is not known", number)
		}
		var t Token
		copy(t.secret[:], issued.Secret)
		switch {
		case !hmac.Equal(proof(t), got):
			return fmt.Errorf("token %s comes without proof of its secret", number)
		case !issued.Used.IsZero():
			return fmt.Errorf("token %s was used at %v by %s", number, issued.Used.UTC().Format(time.RFC3339), issued.UsedBy)
		case !a.now().Before(issued.Expires):
			return fmt.Errorf("token %s has expired at %v", number, issued.Expires.UTC().Format(time.RFC3339))
		}
		issued.Used, issued.UsedBy = a.now(), from
		host = issued.Host
		return nil
	})
	return host, err
}

// withTokens has fn change the tokens; nothing changes if it fails.
func (a *Authority) withTokens(fn func(map[string]*issuedToken) error) error {
	return a.locked(func() error {
		tokens := make(map[string]*issuedToken)
		b, err := os.ReadFile(a.tokenFile())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil {
			if err := json.Unmarshal(b, &tokens); err != nil {
				return fmt.Errorf("reading %q: %w", a.tokenFile(), err)
			}
		}
		if err := fn(tokens); err != nil {
			return err
		}
		for number, t := range tokens {
			if t == nil || a.now().After(t.Expires.Add(forgetAfter)) {
				delete(tokens, number)
			}
		}
		var out bytes.Buffer
		if err := json.NewEncoder(&out).Encode(tokens); err != nil {
			return err
		}
		return writeFile(a.tokenFile(), out.Bytes())
	})
}
