/*
 * accept QUEUE: lets every packet of a queue go, on libnetfilter_queue, in the way that its
 * manual shows; with the settings that package nfq asks for. It prints "ready", and ends when
 * it is killed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <linux/netfilter.h>
#include <libnetfilter_queue/libnetfilter_queue.h>

static int handle(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *packet, void *data)
{
	return nfq_set_verdict(queue, ntohl(nfq_get_msg_packet_hdr(packet)->packet_id), NF_ACCEPT, 0, NULL);
}

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	static char buffer[0xffff + 4096];
	struct nfq_handle *nfq = nfq_open();
	if (!nfq)
		return fail("nfq_open");
	struct nfq_q_handle *queue = nfq_create_queue(nfq, atoi(argv[1]), handle, NULL);
	if (!queue)
		return fail("nfq_create_queue");
	if (nfq_set_mode(queue, NFQNL_COPY_PACKET, 0xffff) < 0 ||
	    nfq_set_queue_flags(queue, NFQA_CFG_F_FAIL_OPEN, NFQA_CFG_F_FAIL_OPEN) < 0 ||
	    nfq_set_queue_maxlen(queue, 4096) < 0)
		return fail("settings");
	nfnl_rcvbufsiz(nfq_nfnlh(nfq), 8 << 20);
	puts("ready");
	fflush(stdout);
	for (;;) {
		ssize_t n = recv(nfq_fd(nfq), buffer, sizeof buffer, 0);
		if (n >= 0)
			nfq_handle_packet(nfq, buffer, n);
		else if (errno != EINTR && errno != ENOBUFS)
			return fail("recv");
	}
}
