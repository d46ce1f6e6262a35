// FerretDB v1 on SQLite: `ferretdb-v1 ADDRESS DIRECTORY`, until it is killed. Its updates are not atomic, so a test of
// a guard that passes on it proves nothing.
package main

import (
	"context"
	"log"
	"log/slog"
	"os"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	quiet := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	server, err := ferretdb.New(&ferretdb.Config{
		Logger:    quiet,
		Handler:   "sqlite",
		SQLiteURL: "file:" + os.Args[2] + "/",
		Listener:  ferretdb.ListenerConfig{TCP: os.Args[1]},
	})
	if err != nil {
		log.Fatal(err)
	}
	server.Run(context.Background())
}
