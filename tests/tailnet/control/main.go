// A control server with a relay, for a tailnet inside network namespaces.
//
// Nodes get 100.64.0.1 and up, in the order in which they log in, and the names user-1@fake-control.example.net and up.
// What a test needs beyond Tailscale's own testcontrol is served below /test/.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	"tailscale.com/types/opt"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// relay starts DERP and STUN on host, and returns the only region of the tailnet.
func relay(host string) *tailcfg.DERPMap {
	server := httptest.NewUnstartedServer(derpserver.Handler(derpserver.New(key.NewNode(), func(string, ...any) {})))
	server.Listener.Close()
	server.Listener = must(net.Listen("tcp", net.JoinHostPort(host, "8443")))
	server.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){} // DERP takes over HTTP/1.1 only
	server.StartTLS()
	stun := stunserver.New(context.Background())
	if err := stun.Listen(net.JoinHostPort(host, "3478")); err != nil {
		log.Fatal(err)
	}
	go stun.Serve()
	node := &tailcfg.DERPNode{Name: "1a", RegionID: 1, HostName: host, IPv4: host, IPv6: "none", DERPPort: 8443, STUNPort: 3478, InsecureForTests: true}
	region := &tailcfg.DERPRegion{RegionID: 1, RegionCode: "test", RegionName: "test", Nodes: []*tailcfg.DERPNode{node}}
	return &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{1: region}}
}

// authority signs certificates for https; `tailscale serve` takes them for Let's Encrypt's where SSL_CERT_FILE names it.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority() authority {
	signer := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	form := form("authority of a test")
	form.IsCA, form.KeyUsage = true, x509.KeyUsageCertSign
	raw := must(x509.CreateCertificate(rand.Reader, form, form, signer.Public(), signer))
	return authority{must(x509.ParseCertificate(raw)), signer}
}

func form(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))),
		Subject:      pkix.Name{CommonName: name}, DNSNames: []string{name}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 0, 80),
	}
}

func (a authority) write(w io.Writer) {
	pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a authority) issue(w io.Writer, name string) {
	own := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	raw := must(x509.CreateCertificate(rand.Reader, form(name), a.cert, own.Public(), a.key))
	pem.Encode(w, &pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(own))})
	pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: raw})
}

func main() {
	host := flag.String("host", "", "address to serve on")
	domain := flag.String("domain", "tail1234.ts.net", "MagicDNS domain")
	magic := flag.Bool("magic-dns", true, "names resolve")
	grant := flag.String("grant", "", "app capability of every peer, as JSON")
	flag.Parse()
	url := fmt.Sprintf("http://%s:8080", *host)
	control := &testcontrol.Server{
		Logf:            log.Printf,
		ExplicitBaseURL: url,
		MagicDNSDomain:  *domain,
		AllOnline:       true,
		TagOwners:       map[string][]string{},
		CollectServices: opt.False,
		DNSConfig:       &tailcfg.DNSConfig{Proxied: *magic, Domains: []string{*domain}},
		DERPMap:         relay(*host),
	}
	if *grant != "" {
		var capabilities tailcfg.PeerCapMap
		if err := json.Unmarshal([]byte(*grant), &capabilities); err != nil {
			log.Fatal(err)
		}
		control.SetGlobalAppCaps(capabilities)
	}
	issuer := newAuthority()
	mux := http.NewServeMux()
	mux.Handle("/", control)
	mux.HandleFunc("/test/nodes", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(control.AllNodes())
	})
	// The host's node changes: another name, another user, other tags, a key that expires in so many days, or it belongs
	// to another tailnet: "in" is a device that is shared into this one, "out" one of a user with whom devices are shared.
	mux.HandleFunc("POST /test/change", func(w http.ResponseWriter, r *http.Request) {
		for _, node := range control.AllNodes() {
			if node.Hostinfo.Hostname() != r.FormValue("host") {
				continue
			}
			if name := r.FormValue("name"); name != "" {
				node.Name = name + "." + *domain + "."
			}
			if user := r.FormValue("user"); user != "" {
				node.User = tailcfg.UserID(must(strconv.Atoi(user)))
			}
			if tag := r.FormValue("tag"); tag != "" {
				node.Tags = []string{tag}
			}
			if days := r.FormValue("expires_in_days"); days != "" {
				node.KeyExpiry = time.Now().AddDate(0, 0, must(strconv.Atoi(days)))
			}
			switch r.FormValue("shared") {
			case "in":
				node.Name, node.Sharer = node.Hostinfo.Hostname()+".tail99.ts.net.", 1
			case "out":
				info := node.Hostinfo.AsStruct()
				info.ShareeNode = true
				node.Name, node.Hostinfo = "", info.View()
			}
			control.UpdateNode(node)
			return
		}
		http.Error(w, "no such host", http.StatusNotFound)
	})
	mux.HandleFunc("/test/authority", func(w http.ResponseWriter, _ *http.Request) { issuer.write(w) })
	mux.HandleFunc("/test/certificate", func(w http.ResponseWriter, r *http.Request) { issuer.issue(w, r.FormValue("name")) })
	log.Fatal(http.ListenAndServe(fmt.Sprintf("%s:8080", *host), mux))
}
