// Sigstore's timestamp authority on a port of the loopback: `timestamp-server PORT`, until it is killed. Its key and
// certificates are made anew at each start. The program of that project would also listen on port 2112, and end if
// somebody else does; this is its server without that.
package main

import (
	"log"
	"os"
	"strconv"
	"time"

	"github.com/sigstore/timestamp-authority/v2/pkg/server"
	"github.com/spf13/viper"
)

func main() {
	port, err := strconv.Atoi(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	// What the flags of that program default to.
	viper.Set("timestamp-signer", "memory")
	viper.Set("timestamp-signer-hash", "sha256")
	viper.Set("default-policy-oid", "1.3.6.1.4.1.57264.2")
	viper.Set("accepted-policy-oids", []string{"1.3.6.1.4.1.57264.2"})
	viper.Set("include-chain-in-response", false)
	viper.Set("use-http-201", false)
	viper.Set("max-request-body-size", 1048576)
	authority := server.NewRestAPIServer("127.0.0.1", port, []string{"http"}, false, 10*time.Second, 10*time.Second)
	log.Fatal(authority.Serve())
}
