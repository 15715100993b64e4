/* SPDX-License-Identifier: Apache-2.0
 *
 * pvecri-runtime: the command line of an OCI runtime, for CRI-O, containerd and podman.
 *
 * A thin client: the daemon decides, and this program does what only a process of the caller's can do: print, exit,
 * execute the OCI runtime, and become the parent of a container's first process. In C, because it is started ten
 * times in a container's life. Nothing in it depends on the command; docs/crio.md has the picture.
 *
 * The protocol, on the daemon's unix socket (src/pvecri/front/protocol.py is the other side). A frame is a length of
 * 4 bytes, little-endian, a byte that says what it is, and the content. Lists are strings that end with NUL.
 *
 *     C   to the daemon     the call: the version of the protocol, the working directory, the arguments; and, as
 *                           SCM_RIGHTS, standard input
 *     o   from the daemon   print the content to standard output
 *     x   from the daemon   exit with the status in the content's byte
 *     f   from the daemon   fail: print the message to standard error, append it to --log, exit with status 1
 *     r   from the daemon   execute these arguments in place of this program
 *     e   from the daemon   execute these arguments in a child
 *     E   to the daemon     its status
 *     l   from the daemon   launch: see launch(); with a PID namespace as SCM_RIGHTS, or without
 *     m   to the daemon     the monitor's PID, once it runs
 *     E   to the daemon     the status of the program, once it has ended
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "unknown"
#endif
#define PROTOCOL "1"
#define FRAME_MAX (16u << 20)

static const char *socket_path = "/run/pvecri/runtime.sock";
static const char *log_path;
static int log_is_json;
static int monitor_sock = -1; /* to the monitor that this process has started */

/* -- errors ------------------------------------------------------------------------------------------------- */

/* Write TEXT as the content of a JSON string. */
static void put_json(FILE *file, const char *text)
{
	for (const unsigned char *each = (const unsigned char *)text; *each; each++) {
		if (*each == '"' || *each == '\\')
			fputc('\\', file);
		if (*each < 0x20)
			fprintf(file, "\\u%04x", *each);
		else
			fputc(*each, file);
	}
}

/* Tell the caller: CRI-O and podman read standard error, containerd the file of --log. */
static void __attribute__((noreturn)) fail(const char *format, ...)
{
	char message[8192];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(message, sizeof message, format, arguments);
	va_end(arguments);
	fprintf(stderr, "pvecri-runtime: %s\n", message);
	FILE *log = log_path ? fopen(log_path, "ae") : NULL;
	if (log && log_is_json) {
		fputs("{\"level\":\"error\",\"msg\":\"", log);
		put_json(log, message);
		fputs("\"}\n", log);
	} else if (log) {
		fprintf(log, "level=error msg=\"");
		put_json(log, message);
		fputs("\"\n", log);
	}
	if (log)
		fclose(log);
	exit(1);
}

/* -- frames ------------------------------------------------------------------------------------------------- */

struct frame {
	char kind;
	char *content; /* ends with a NUL that is not counted */
	size_t length;
	int fd; /* -1 if none came */
};

static void write_all(int fd, const char *data, size_t length)
{
	while (length) {
		ssize_t written = write(fd, data, length);
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			fail("write: %s", strerror(errno));
		data += written;
		length -= written;
	}
}

/* Send a frame, with descriptor FD unless that is negative. */
static void send_frame(int sock, char kind, const char *content, size_t length, int fd)
{
	uint32_t size = length;
	char header[5] = { size, size >> 8, size >> 16, size >> 24, kind };
	struct iovec part = { header, sizeof header };
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

	if (fd >= 0) {
		message.msg_control = control.bytes;
		message.msg_controllen = sizeof control.bytes;
		struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(rights), &fd, sizeof(int));
	}
	if (sendmsg(sock, &message, MSG_NOSIGNAL) != (ssize_t)sizeof header)
		fail("pvecri at %s does not listen any more: %s", socket_path, strerror(errno));
	while (length) {
		ssize_t sent = send(sock, content, length, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			fail("pvecri at %s does not listen any more: %s", socket_path, strerror(errno));
		content += sent;
		length -= sent;
	}
}

static void send_number(int sock, char kind, int number)
{
	char text[16];

	send_frame(sock, kind, text, snprintf(text, sizeof text, "%d%c", number, 0), -1);
}

/* Whether LENGTH bytes came before the end of the connection. A descriptor that comes with them goes to *FD. */
static int receive(int sock, char *data, size_t length, int *fd)
{
	while (length) {
		struct iovec part = { data, length };
		union {
			struct cmsghdr align;
			char bytes[CMSG_SPACE(sizeof(int))];
		} control = { 0 };
		struct msghdr message = { .msg_iov = &part,
					  .msg_iovlen = 1,
					  .msg_control = control.bytes,
					  .msg_controllen = sizeof control.bytes };
		ssize_t received = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
		if (received < 0 && errno == EINTR)
			continue;
		if (received <= 0)
			return 0;
		struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
		if (rights && rights->cmsg_type == SCM_RIGHTS && fd)
			memcpy(fd, CMSG_DATA(rights), sizeof(int));
		data += received;
		length -= received;
	}
	return 1;
}

static int read_frame(int sock, struct frame *frame)
{
	unsigned char header[5];

	frame->fd = -1;
	if (!receive(sock, (char *)header, sizeof header, &frame->fd))
		return 0;
	frame->length = header[0] | header[1] << 8 | header[2] << 16 | (size_t)header[3] << 24;
	frame->kind = header[4];
	if (frame->length > FRAME_MAX)
		fail("pvecri at %s sent a frame of %zu bytes", socket_path, frame->length);
	frame->content = malloc(frame->length + 1);
	if (!frame->content)
		fail("out of memory");
	frame->content[frame->length] = 0;
	return receive(sock, frame->content, frame->length, NULL);
}

/* The strings of a list; the array ends with NULL. */
static char **strings(struct frame *frame, int *count)
{
	char **list = calloc(frame->length + 1, sizeof *list);
	char *end = frame->content + frame->length;

	if (!list)
		fail("out of memory");
	*count = 0;
	for (char *each = frame->content; each < end; each += strlen(each) + 1)
		list[(*count)++] = each;
	return list;
}

/* -- the monitor of a container ----------------------------------------------------------------------------- */

#define REAPED_MAX 256

static struct {
	pid_t pid;
	int status;
} reaped[REAPED_MAX]; /* the last children that ended; a ring */
static unsigned reaped_count;

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		reaped[reaped_count % REAPED_MAX].pid = pid;
		reaped[reaped_count++ % REAPED_MAX].status = status;
	}
}

static int has_ended(pid_t pid, int *status)
{
	for (unsigned i = 0; i < REAPED_MAX && i < reaped_count; i++)
		if (reaped[i].pid == pid) {
			*status = reaped[i].status;
			return 1;
		}
	return 0;
}

/* Wait until child PID has ended; signals that come meanwhile are passed on to it if FORWARD. */
static int wait_for(pid_t pid, int forward)
{
	sigset_t all;
	int status;

	sigfillset(&all);
	for (reap(); !has_ended(pid, &status); reap()) {
		int number = sigwaitinfo(&all, NULL);
		if (number > 0 && number != SIGCHLD && forward)
			kill(pid, number);
	}
	return status;
}

/*
 * Be where the container is: people and programs enter its namespaces, and read its /proc/PID/root, by the PID that
 * the caller knows. Only the PID namespace stays the CT's, as nobody can change his own.
 */
static void join_namespaces(pid_t container)
{
	/* Not by /proc, which has the PIDs of the node's namespace. */
	int pidfd = syscall(SYS_pidfd_open, container, 0);

	if (pidfd < 0 || setns(pidfd, CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWNS))
		if (errno != ESRCH) /* it has ended already */
			fail("cannot enter the container's namespaces: %s", strerror(errno));
	close(pidfd);
}

/* Give up all that a process that waits and passes signals on does not need. */
static void drop_privileges(int keep)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = { { 0 } };

	for (int capability = 0; prctl(PR_CAPBSET_DROP, capability) == 0; capability++)
		;
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_DUMPABLE, 0);
	data[0].effective = data[0].permitted = 1u << CAP_KILL;
	syscall(SYS_capset, &header, data);
	/* The container's log ends when nothing has its pipes open any more. */
	if (keep != 0)
		dup2(keep, 0);
	syscall(SYS_close_range, 1u, ~0u, 0u);
}

static int code_of(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* End as the container did. */
static void __attribute__((noreturn)) end_with(int status, int exit_file)
{
	sigset_t none;

	dprintf(exit_file, "%d", code_of(status));
	close(exit_file);
	if (WIFSIGNALED(status)) {
		struct rlimit no_core = { 0, 0 };
		setrlimit(RLIMIT_CORE, &no_core);
		signal(WTERMSIG(status), SIG_DFL);
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		kill(getpid(), WTERMSIG(status));
	}
	_exit(code_of(status));
}

/* The arguments of a launch. */
struct launch {
	const char *exit_file; /* where the monitor writes the container's exit code */
	const char *pid_file;  /* where the program writes the container's PID */
	char **command;	       /* the program that creates the container */
	int own_proc;	       /* whether it needs a /proc of another PID namespace */
};

static void __attribute__((noreturn)) create_container(struct launch *launch, const sigset_t *mask)
{
	sigprocmask(SIG_SETMASK, mask, NULL);
	/* The program reads /proc by the PIDs of its own namespace. All other mounts keep their propagation. */
	if (launch->own_proc &&
	    (unshare(CLONE_NEWNS) || mount("none", "/proc", NULL, MS_PRIVATE | MS_REC, NULL) ||
	     mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL)))
		fail("cannot mount /proc of the CT's PID namespace: %s", strerror(errno));
	execv(launch->command[0], launch->command);
	fail("cannot execute %s: %s", launch->command[0], strerror(errno));
}

/*
 * The parent of the container's first process. The caller (conmon, containerd's shim) learns the end of a container
 * by waitpid(2), but the kernel hands an orphan of a PID namespace to a process of that namespace only, never to a
 * caller outside. So this process stays as long as the container, as the caller's child, and ends as it does. It is
 * in the CT's PID namespace, so that it dies with the CT.
 */
static void __attribute__((noreturn)) monitor(struct launch *launch, int sync)
{
	sigset_t all, before;
	int status, ended;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	signal(SIGCHLD, SIG_DFL); /* ignored, children would be reaped unseen */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_NAME, "pvecri-monitor");
	setsid(); /* no signal of a terminal, and none for the caller's group */
	int exit_file = open(launch->exit_file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (exit_file < 0)
		fail("%s: %s", launch->exit_file, strerror(errno));
	pid_t program = fork();
	if (program < 0)
		fail("fork: %s", strerror(errno));
	if (program == 0)
		create_container(launch, &before);
	status = wait_for(program, 0);
	pid_t container = 0;
	FILE *pid_file = status ? NULL : fopen(launch->pid_file, "re");
	if (pid_file && fscanf(pid_file, "%d", &container) != 1)
		container = 0;
	if (pid_file)
		fclose(pid_file);
	if (!status && container <= 0)
		status = 1 << 8;
	if (!status)
		join_namespaces(container);
	if (write(sync, &status, sizeof status) != sizeof status)
		status = -1;
	if (container <= 0)
		_exit(1);
	/* Only if the call succeeds does somebody know of the container. */
	char success;
	if (status || read(sync, &success, sizeof success) != sizeof success)
		kill(container, SIGKILL);
	drop_privileges(exit_file);
	ended = wait_for(container, 1);
	end_with(ended, 0);
}

/*
 * Start a monitor, and by it the program that creates the container; tell the daemon when that has ended.
 * The arguments: exit file, PID file, the program and its arguments.
 */
static void launch(int sock, struct frame *frame)
{
	int count, sync[2], status;
	char **list = strings(frame, &count);
	struct launch wanted = { .exit_file = list[0],
				 .pid_file = list[1],
				 .command = list + 2,
				 .own_proc = frame->fd >= 0 };

	if (count < 3)
		fail("pvecri at %s sent an incomplete launch", socket_path);
	/* Affects children only: this process stays in the caller's namespace, and what it leaves is the caller's. */
	if (frame->fd >= 0 && setns(frame->fd, CLONE_NEWPID))
		fail("cannot enter the CT's PID namespace: %s", strerror(errno));
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sync))
		fail("socketpair: %s", strerror(errno));
	pid_t child = fork();
	/* ENOMEM: the first process of the PID namespace has ended (pid_namespaces(7)). */
	if (child < 0 && errno == ENOMEM && wanted.own_proc)
		fail("the CT has ended: no container can be created in it");
	if (child < 0)
		fail("cannot start a process in the CT: %s", strerror(errno));
	if (child == 0) {
		close(sock);
		close(sync[0]);
		signal(SIGPIPE, SIG_IGN);
		monitor(&wanted, sync[1]);
	}
	close(sync[1]);
	send_number(sock, 'm', child);
	ssize_t length;
	while ((length = read(sync[0], &status, sizeof status)) < 0 && errno == EINTR)
		;
	if (length != sizeof status)
		status = 1 << 8; /* the monitor has failed, and said why */
	monitor_sock = sync[0];
	/* The end of a PID namespace waits until all of its processes are reaped: the daemon may stop the CT next. */
	if (status) {
		int ended = 0;
		while (waitpid(child, &ended, 0) < 0 && errno == EINTR)
			;
		if (WIFSIGNALED(ended) && WTERMSIG(ended) == SIGKILL && wanted.own_proc)
			fail("the CT has ended while the container was created: its processes were killed");
	}
	send_number(sock, 'E', code_of(status));
	free(list);
}

/* Execute a program with this one's streams, and tell the daemon how it ended. */
static void run(int sock, struct frame *frame)
{
	int count, status;
	char **command = strings(frame, &count);
	pid_t child = count ? fork() : -1;

	if (child < 0)
		fail("cannot start a process: %s", strerror(errno));
	if (child == 0) {
		execv(command[0], command);
		fail("cannot execute %s: %s", command[0], strerror(errno));
	}
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			fail("waitpid: %s", strerror(errno));
	send_number(sock, 'E', code_of(status));
	free(command);
}

/* -- the call ------------------------------------------------------------------------------------------------ */

static int connect_daemon(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(socket_path) >= sizeof address.sun_path)
		fail("--socket %s: the path is longer than %zu bytes", socket_path, sizeof address.sun_path - 1);
	strcpy(address.sun_path, socket_path);
	if (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof address)) {
		/* podman takes "No such file or directory" for a command that is not in the image. */
		int absent = errno == ENOENT || errno == ECONNREFUSED;
		fail("cannot reach pvecri at %s: %s; start it (systemctl start pvecri) or name its socket by --socket",
		     socket_path, absent ? "nothing listens there" : strerror(errno));
	}
	return sock;
}

static void send_call(int sock, int argc, char **argv)
{
	char *cwd = getcwd(NULL, 0), *content = NULL;
	size_t length = 0;
	FILE *stream = open_memstream(&content, &length);

	if (!cwd || !stream)
		fail("working directory: %s", strerror(errno));
	fwrite(PROTOCOL, sizeof PROTOCOL, 1, stream);
	fwrite(cwd, strlen(cwd) + 1, 1, stream);
	for (int i = 0; i < argc; i++)
		fwrite(argv[i], strlen(argv[i]) + 1, 1, stream);
	fclose(stream);
	send_frame(sock, 'C', content, length, fcntl(0, F_GETFD) < 0 ? -1 : 0);
	free(content);
	free(cwd);
}

static void __attribute__((noreturn)) obey(int sock)
{
	struct frame frame;
	int count, status;

	while (read_frame(sock, &frame)) {
		switch (frame.kind) {
		case 'o':
			write_all(1, frame.content, frame.length);
			break;
		case 'x':
			status = frame.length ? (unsigned char)frame.content[0] : 1;
			/* It may have ended already, with its CT. */
			if (status == 0 && monitor_sock >= 0)
				send(monitor_sock, "", 1, MSG_NOSIGNAL);
			exit(status);
		case 'f':
			fail("%s", frame.content);
		case 'r': {
			char **command = strings(&frame, &count);
			if (count)
				execv(command[0], command);
			fail("cannot execute %s: %s", count ? command[0] : "nothing", strerror(errno));
		}
		case 'e':
			run(sock, &frame);
			break;
		case 'l':
			launch(sock, &frame);
			break;
		default:
			fail("pvecri at %s speaks another protocol: are both of the same version?", socket_path);
		}
		free(frame.content);
	}
	fail("pvecri at %s ended before it had answered; its log says why", socket_path);
}

static const char USAGE[] =
	"usage: pvecri-runtime [--socket PATH] [--root DIR] [--log FILE] [--log-format text|json] COMMAND …\n"
	"\n"
	"An OCI runtime for CRI-O, containerd and podman: each pod is a Proxmox LXC container, made by the daemon\n"
	"pvecri, which listens on --socket (/run/pvecri/runtime.sock).\n"
	"\n"
	"commands: create start state kill delete exec update pause resume ps events checkpoint restore features\n";

/* The value of option NAME at argv[*i], as `--name value` or `--name=value`; NULL if it is another one. */
static char *value_of(const char *name, int argc, char **argv, int *i)
{
	size_t length = strlen(name);

	if (strncmp(argv[*i], name, length))
		return NULL;
	if (argv[*i][length] == '=')
		return argv[*i] + length + 1;
	if (argv[*i][length] || *i + 1 >= argc)
		return NULL;
	return argv[++*i];
}

int main(int argc, char **argv)
{
	char **sent = calloc(argc, sizeof *sent), *value;
	int count = 0, i;

	/* The options before the command: those that this program itself needs. The daemon reads all of them. */
	for (i = 1; i < argc && argv[i][0] == '-'; i++) {
		int first = i;
		if (!strcmp(argv[i], "--version") || !strcmp(argv[i], "-v")) {
			puts("pvecri-runtime version " VERSION "\nspec: 1.2.0");
			return 0;
		}
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			fputs(USAGE, stdout);
			return 0;
		}
		if ((value = value_of("--socket", argc, argv, &i))) {
			socket_path = value;
			continue;
		}
		if ((value = value_of("--log", argc, argv, &i)))
			log_path = value;
		else if ((value = value_of("--log-format", argc, argv, &i)))
			log_is_json = !strcmp(value, "json");
		else if (!value_of("--root", argc, argv, &i) && !value_of("--rootless", argc, argv, &i) &&
			 !value_of("--criu", argc, argv, &i))
			(void)value_of("--cgroup-manager", argc, argv, &i);
		while (first <= i)
			sent[count++] = argv[first++];
	}
	if (i == argc) {
		fputs(USAGE, stderr);
		return 1;
	}
	while (i < argc)
		sent[count++] = argv[i++];
	int sock = connect_daemon();
	send_call(sock, count, sent);
	obey(sock);
}
