/*
 * Tells the kernel's NBD client another size of a disk in use: nbd-size NUMBER BYTES.
 *
 * The kernel takes it by generic netlink (NBD_CMD_RECONFIGURE); nbd-client has no word for it. Only for disks that were
 * connected by netlink, as nbd-client does it since 3.17.
 */
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct message {
	struct nlmsghdr head;
	struct genlmsghdr command;
	char attributes[1024];
};

static void add(struct message *message, uint16_t type, const void *value, uint16_t len)
{
	struct nlattr *attribute = (void *)((char *)message + NLMSG_ALIGN(message->head.nlmsg_len));

	attribute->nla_type = type;
	attribute->nla_len = NLA_HDRLEN + len;
	memcpy((char *)attribute + NLA_HDRLEN, value, len);
	message->head.nlmsg_len = NLMSG_ALIGN(message->head.nlmsg_len) + NLA_ALIGN(attribute->nla_len);
}

static void begin(struct message *message, uint16_t family, uint8_t command, uint8_t version)
{
	memset(message, 0, sizeof *message);
	message->head.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN);
	message->head.nlmsg_type = family;
	message->head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	message->command.cmd = command;
	message->command.version = version;
}

/* Sends a message and reads answers up to the acknowledgement; the family's number may be among them. */
static int ask(int fd, struct message *message, uint16_t *family)
{
	if (send(fd, message, message->head.nlmsg_len, 0) < 0)
		return -1;
	for (;;) {
		struct message answer;
		ssize_t len = recv(fd, &answer, sizeof answer, 0);

		if (len < (ssize_t)NLMSG_LENGTH(sizeof(int)))
			return -1;
		if (answer.head.nlmsg_type == NLMSG_ERROR)
			return *(int *)NLMSG_DATA(&answer.head);
		char *at = answer.attributes, *end = (char *)&answer + len;
		while (family && at + NLA_HDRLEN <= end) {
			struct nlattr *attribute = (void *)at;

			if (attribute->nla_type == CTRL_ATTR_FAMILY_ID)
				memcpy(family, at + NLA_HDRLEN, sizeof *family);
			if (attribute->nla_len < NLA_HDRLEN)
				break;
			at += NLA_ALIGN(attribute->nla_len);
		}
	}
}

int main(int argc, char **argv)
{
	struct message message;
	uint16_t family = 0;
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);

	if (argc != 3 || fd < 0)
		return 2;
	uint32_t number = strtoul(argv[1], NULL, 10);
	uint64_t bytes = strtoull(argv[2], NULL, 10);
	begin(&message, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1);
	add(&message, CTRL_ATTR_FAMILY_NAME, "nbd", 4);
	int error = ask(fd, &message, &family);
	if (!error && family) {
		begin(&message, family, NBD_CMD_RECONFIGURE, NBD_GENL_VERSION);
		add(&message, NBD_ATTR_INDEX, &number, sizeof number);
		add(&message, NBD_ATTR_SIZE_BYTES, &bytes, sizeof bytes);
		error = ask(fd, &message, NULL);
	}
	if (error || !family)
		fprintf(stderr, "nbd-size: %s\n", strerror(error ? -error : 2));
	return error || !family;
}
