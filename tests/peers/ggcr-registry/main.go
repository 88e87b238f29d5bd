// Command ggcr-registry serves go-containerregistry's in-memory registry, with the OCI 1.1 referrers API, on a loopback port.
//
// It is a peer for tests/interop: a registry that Countersign's authors did not write. It prints the address it listens on
// as its only line of standard output and stops when its standard input closes, so it cannot outlive the test that
// started it. Nothing is kept on disk; there is no authentication and no TLS.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// headerTimeout bounds a client that connects and says nothing.
const headerTimeout = 5 * time.Second

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	server := &http.Server{
		Handler:           registry.New(registry.WithReferrersSupport(true)),
		ReadHeaderTimeout: headerTimeout,
	}
	log.Fatal(server.Serve(listener))
}
