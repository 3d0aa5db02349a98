/*
 * accept QUEUE: takes every packet of a netfilter queue and lets it pass as it is.
 *
 * It does nothing else, so no user-space helper on the same packets can be faster:
 * it is the limit of NFQUEUE. Queue length, receive buffer and flags are the daemon's.
 * It prints "ready" as soon as it is bound, and runs until it is killed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <libnetfilter_queue/libnetfilter_queue.h>

enum {
	QUEUE_LENGTH = 4096,
	RECEIVE_BUFFER = 8 << 20,
	PACKET_LENGTH = 0xffff,
};

static int pass(struct nfq_q_handle *queue, struct nfgenmsg *msg, struct nfq_data *data, void *unused)
{
	struct nfqnl_msg_packet_hdr *header = nfq_get_msg_packet_hdr(data);

	(void)msg;
	(void)unused;
	return header ? nfq_set_verdict(queue, ntohl(header->packet_id), NF_ACCEPT, 0, NULL) : -1;
}

static void fail(const char *attempt)
{
	fprintf(stderr, "accept: %s: %s\n", attempt, strerror(errno));
	exit(1);
}

int main(int argc, char **argv)
{
	static char buffer[PACKET_LENGTH + 4096] __attribute__((aligned));
	struct nfq_q_handle *queue;
	struct nfq_handle *nfq;
	int size = RECEIVE_BUFFER, fd;
	ssize_t n;

	if (argc != 2) {
		fprintf(stderr, "usage: accept QUEUE\n");
		return 2;
	}
	nfq = nfq_open();
	if (!nfq)
		fail("open the netlink socket");
	queue = nfq_create_queue(nfq, (uint16_t)atoi(argv[1]), pass, NULL);
	if (!queue)
		fail("bind the queue");
	if (nfq_set_mode(queue, NFQNL_COPY_PACKET, PACKET_LENGTH) < 0 ||
	    nfq_set_queue_maxlen(queue, QUEUE_LENGTH) < 0 ||
	    nfq_set_queue_flags(queue, NFQA_CFG_F_FAIL_OPEN, NFQA_CFG_F_FAIL_OPEN) < 0)
		fail("set up the queue");
	fd = nfq_fd(nfq);
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0)
		fail("enlarge the receive buffer");
	puts("ready");
	fflush(stdout);
	for (;;) {
		n = recv(fd, buffer, sizeof(buffer), 0);
		if (n >= 0)
			nfq_handle_packet(nfq, buffer, (int)n);
		else if (errno != ENOBUFS && errno != EINTR)
			fail("receive");
	}
}
