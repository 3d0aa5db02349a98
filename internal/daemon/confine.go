package daemon

import (
	"fmt"

	"github.com/nfq-ftphelper/nfq-ftphelper/internal/confine"
)

// confine gives up the rights that the process does not need any more, before any packet is read.
func (d *daemon) confine() error {
	if d.settings.Confine == nil {
		return nil
	}
	report, err := confine.Self(*d.settings.Confine)
	if err != nil {
		return fmt.Errorf("the process can't be confined: %w", err)
	}
	d.log.Info("confined", "capabilities", "CAP_NET_ADMIN", "bounding_set", report.Bounding, "landlock", report.Landlock)
	return nil
}

// status is the line that "systemctl status" shows.
func (d *daemon) status() string {
	c, with := d.choice.Rules, "helper "+d.choice.Rules.Helper
	if d.settings.Request.Monitor {
		with = "monitoring only"
	}
	if c.Queues == 1 {
		return fmt.Sprintf("serving queue %d, %s", c.Queue, with)
	}
	return fmt.Sprintf("serving queues %d to %d, %s", c.Queue, c.Queue+c.Queues-1, with)
}

// notify logs an error of notifying the service manager, which must not end the daemon.
func (d *daemon) notify(err error) {
	if err != nil {
		d.log.Warn("the service manager could not be notified", "why", err)
	}
}
