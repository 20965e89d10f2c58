/* What dmsetup does not do with the control node: poll, arm, copies, other processes, signals.
 * Prints a line for each step; the test compares. Built and run by program.rs. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/dm-ioctl.h>

static struct dm_ioctl header(const char *name) {
  struct dm_ioctl dm;
  memset(&dm, 0, sizeof dm);
  dm.version[0] = 4;
  dm.data_size = sizeof dm;
  dm.data_start = sizeof dm;
  strcpy(dm.name, name);
  return dm;
}

static void call(int fd, const char *what, unsigned long command, struct dm_ioctl *dm) {
  int result = ioctl(fd, command, dm);
  printf("%s: %s\n", what, result ? strerror(errno) : "ok");
}

static void readable(int fd, const char *when, int timeout_ms) {
  struct pollfd polled = {fd, POLLIN, 0};
  printf("%s: %s\n", when, poll(&polled, 1, timeout_ms) == 1 ? "readable" : "quiet");
}

/* Loads a table of eight sectors of zeros. */
static void load(int fd, const char *name) {
  struct {
    struct dm_ioctl dm;
    struct dm_target_spec spec;
    char parameters[8];
  } call_of;
  memset(&call_of, 0, sizeof call_of);
  call_of.dm = header(name);
  call_of.dm.data_size = sizeof call_of;
  call_of.dm.target_count = 1;
  call_of.spec.length = 8;
  strcpy(call_of.spec.target_type, "zero");
  call(fd, "load", DM_TABLE_LOAD, &call_of.dm);
}

static void on_alarm(int number) { (void)number; }

int main(void) {
  struct stat node;
  struct dm_ioctl dm;
  setvbuf(stdout, NULL, _IONBF, 0);
  printf("stat: %d", stat("/dev/mapper/control", &node));
  printf(" %u:%u\n", major(node.st_rdev), minor(node.st_rdev));
  int fd = open("/dev/mapper/control", O_RDWR);
  dm = header("");
  dm.version[1] = 51;
  call(fd, "too new", DM_VERSION, &dm);
  printf("version: %u.%u\n", dm.version[0], dm.version[1]);
  errno = 0;
  printf("other ioctl: %d\n", ioctl(fd, TIOCGWINSZ, &dm));
  readable(fd, "at first", 0);
  dm = header("p");
  call(fd, "create", DM_DEV_CREATE, &dm);
  readable(fd, "after an event", -1);
  readable(fd, "still", 0);
  call(fd, "arm", DM_DEV_ARM_POLL, &dm);
  readable(fd, "armed", 0);
  /* A copy and a child are the same file. */
  int copy = dup(fd);
  close(fd);
  if (fork() == 0) {
    dm = header("q");
    call(copy, "child", DM_DEV_CREATE, &dm);
    _exit(0);
  }
  wait(NULL);
  readable(copy, "after the child", -1);
  call(copy, "arm", DM_DEV_ARM_POLL, &dm);
  readable(copy, "armed", 0);
  /* A signal ends a wait, and only that. */
  struct sigaction action = {.sa_handler = on_alarm};
  sigaction(SIGALRM, &action, NULL);
  dm = header("p");
  ualarm(200000, 0);
  call(copy, "wait", DM_DEV_WAIT, &dm);
  dm = header("p");
  call(copy, "status", DM_DEV_STATUS, &dm);
  call(copy, "null", DM_DEV_STATUS, NULL);
  int found = stat("/dev/mapper/p", &node);
  printf("no table: %d %s\n", found, strerror(errno));
  load(copy, "p");
  printf("node: %d", stat("/dev/mapper/p", &node));
  printf(" %u:%u block %d\n", major(node.st_rdev), minor(node.st_rdev), S_ISBLK(node.st_mode));
  int opened = open("/dev/mapper/p", O_RDONLY);
  printf("open: %d %s\n", opened, strerror(errno));
  dm = header("p");
  dm.flags = DM_SECURE_DATA_FLAG;
  call(copy, "remove", DM_DEV_REMOVE, &dm);
  dm = header("p");
  dm.flags = DM_SECURE_DATA_FLAG;
  call(copy, "again", DM_DEV_REMOVE, &dm);
  printf("wiped: %d\n", dm.name[0] == 0 && dm.data_size == 0);
  dm = header("");
  call(copy, "all", DM_REMOVE_ALL, &dm);
  found = stat("/dev/mapper/p", &node);
  printf("gone: %d %s\n", found, strerror(errno));
  return 0;
}
