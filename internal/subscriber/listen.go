package subscriber

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ownbucket/ownbucket/internal/database"
)

// channel is what the outbox's trigger notifies.
const channel = "ownbucket_outbox"

// Listen calls wake whenever a publisher announces events in a schema. It needs a
// session of its own, which a pooler in transaction mode can't give: polling then
// finds them alone. It returns when the context ends.
func Listen(ctx context.Context, url, schema string, wake func(), logger *slog.Logger) {
	const again = 10 * time.Second
	for ctx.Err() == nil {
		err := listen(ctx, url, schema, wake)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, database.ErrPooled) {
			logger.Info("announcements of events can't be heard behind a pooler: polling finds them")
			return
		}
		logger.Warn("announcements of events can't be heard: polling finds them", "error", err, "again_in", again)
		wait(ctx, again)
	}
}

func listen(ctx context.Context, url, schema string, wake func()) (err error) {
	conn, err := database.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect to listen: %w", err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing) // nothing is lost with it
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	wake()
	for {
		notification, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("wait for announcements: %w", err)
		}
		if notification.Payload == schema {
			wake()
		}
	}
}
