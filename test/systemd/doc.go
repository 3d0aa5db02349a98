// Package systemd tests deploy/systemd/nfq-ftphelper.service under a real systemd, on a router of the test
// network. That systemd changes settings of the whole kernel as it starts, so the tests run in the
// emulator only: see test/vm.
package systemd
