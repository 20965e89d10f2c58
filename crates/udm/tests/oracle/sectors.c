// Reads and writes sectors of a device: one tool for Linux's devices and for ours over NBD, so that
// a recorded case does the same on both.
//
//   sectors write DEVICE SECTOR COUNT STAMP    fills each sector with STAMP and its own number
//   sectors read DEVICE SECTOR COUNT           says what each holds, runs of a kind in one line
//   sectors zero|discard|flush DEVICE [SECTOR COUNT]
//   sectors size DEVICE                        in sectors
//
// DEVICE is a path, or nbd:SOCKET:EXPORT. Errors are printed as "error: WORDS" on standard output
// with exit code 1, since which errno a failed I/O has is part of the answer.
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { SECTOR_BYTES = 512, LIMIT_SECTORS = 32768 };
enum { NBD_HAS_TRIM = 1 << 5, NBD_HAS_ZEROES = 1 << 6 };
enum { NBD_READ, NBD_WRITE, NBD_FLUSH = 3, NBD_TRIM = 4, NBD_ZEROES = 6 };

static int fd;
static int is_nbd;
static int is_block;
static int nbd_flags;
static uint64_t size_bytes;

static int fail(int number) {
    // The names of what a block device can answer; the rest by number.
    const char *words = strerror(number);
    printf("error: %s\n", words);
    exit(1);
}

static void all(int writing, void *bytes, size_t len) {
    char *at = bytes;
    while (len > 0) {
        ssize_t moved = writing ? write(fd, at, len) : read(fd, at, len);
        if (moved <= 0) fail(moved == 0 ? ENXIO : errno);
        at += moved;
        len -= moved;
    }
}

static void open_nbd(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *export = strrchr(name, ':');
    if (!export || (size_t)(export - name) >= sizeof address.sun_path) fail(EINVAL);
    memcpy(address.sun_path, name, export - name);
    export += 1;
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (void *)&address, sizeof address)) fail(errno);
    char greeting[18];
    all(0, greeting, sizeof greeting);
    struct __attribute__((packed)) {
        uint32_t flags;
        char magic[8];
        uint32_t option, len;
    } ask = {htobe32(3), "IHAVEOPT", htobe32(1), htobe32(strlen(export))};
    memcpy(ask.magic, "IHAVEOPT", 8);
    all(1, &ask, sizeof ask);
    all(1, (void *)export, strlen(export));
    struct __attribute__((packed)) {
        uint64_t size;
        uint16_t flags;
    } answer;
    all(0, &answer, sizeof answer);
    size_bytes = be64toh(answer.size);
    nbd_flags = be16toh(answer.flags);
    is_nbd = 1;
}

static void open_path(const char *path, int writing) {
    int access = writing ? O_RDWR : O_RDONLY;
    fd = open(path, access | O_DIRECT);
    if (fd < 0 && errno == EINVAL) fd = open(path, access);
    if (fd < 0) fail(errno);
    struct stat found;
    if (fstat(fd, &found)) fail(errno);
    is_block = S_ISBLK(found.st_mode);
    size_bytes = found.st_size;
    if (is_block && ioctl(fd, BLKGETSIZE64, &size_bytes)) fail(errno);
}

static void nbd(uint16_t command, uint64_t offset, uint32_t len, void *bytes) {
    struct __attribute__((packed)) {
        uint32_t magic;
        uint16_t flags, command;
        uint64_t handle, offset;
        uint32_t len;
    } ask = {htobe32(0x25609513), 0, htobe16(command), 0, htobe64(offset), htobe32(len)};
    all(1, &ask, sizeof ask);
    if (command == NBD_WRITE) all(1, bytes, len);
    struct __attribute__((packed)) {
        uint32_t magic, error;
        uint64_t handle;
    } answer;
    all(0, &answer, sizeof answer);
    if (answer.error) fail(be32toh(answer.error));
    if (command == NBD_READ) all(0, bytes, len);
}

// One I/O as one call, however long: where it is cut is the device's business.
static void transfer(int writing, uint64_t offset, size_t len, void *bytes) {
    if (is_nbd) return nbd(writing ? NBD_WRITE : NBD_READ, offset, len, bytes);
    ssize_t moved = writing ? pwrite(fd, bytes, len, offset) : pread(fd, bytes, len, offset);
    if (moved < 0) fail(errno);
    if ((size_t)moved != len) {
        printf("short: %zd of %zu bytes\n", moved, len);
        exit(1);
    }
}

static void erase(int zeroing, uint64_t offset, uint64_t len) {
    if (is_nbd && zeroing && !(nbd_flags & NBD_HAS_ZEROES)) {
        // As the kernel does for a device that cannot.
        void *zeros = calloc(1, len + 1);
        if (!zeros) fail(ENOMEM);
        return nbd(NBD_WRITE, offset, len, zeros);
    }
    if (is_nbd && !zeroing && !(nbd_flags & NBD_HAS_TRIM)) fail(EOPNOTSUPP);
    if (is_nbd) return nbd(zeroing ? NBD_ZEROES : NBD_TRIM, offset, len, NULL);
    uint64_t range[2] = {offset, len};
    if (is_block) {
        if (ioctl(fd, zeroing ? BLKZEROOUT : BLKDISCARD, range)) fail(errno);
    } else if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, len)) {
        fail(errno);
    }
}

// What a sector holds: zeros, our stamp (and then for which sector), one byte all over, or else.
static void describe(const unsigned char *sector, char *words, size_t len, uint64_t number) {
    uint64_t stamp[SECTOR_BYTES / 8];
    memcpy(stamp, sector, SECTOR_BYTES);
    int same = 1, bytes = 1;
    for (int at = 2; at < SECTOR_BYTES / 8; at += 2)
        same &= stamp[at] == stamp[0] && stamp[at + 1] == stamp[1];
    for (int at = 1; at < SECTOR_BYTES; at++) bytes &= sector[at] == sector[0];
    if (bytes) {
        snprintf(words, len, sector[0] ? "all %02x" : "zeros", sector[0]);
    } else if (same) {
        // As a distance: so neighbours of one write are one run, wherever they were mapped to.
        snprintf(words, len, "stamp %llu, written %lld away", (unsigned long long)stamp[0],
                 (long long)(stamp[1] - number));
    } else {
        snprintf(words, len, "other");
    }
}

static void show(const unsigned char *bytes, uint64_t sector, uint64_t count) {
    char words[2][80] = {"", ""};
    uint64_t start = sector;
    for (uint64_t at = 0; at < count; at++) {
        describe(bytes + at * SECTOR_BYTES, words[1], sizeof words[1], sector + at);
        if (at > 0 && strcmp(words[0], words[1])) {
            printf("%llu+%llu %s\n", (unsigned long long)start,
                   (unsigned long long)(sector + at - start), words[0]);
            start = sector + at;
        }
        strcpy(words[0], words[1]);
    }
    if (count)
        printf("%llu+%llu %s\n", (unsigned long long)start,
               (unsigned long long)(sector + count - start), words[0]);
}

int main(int argc, char **argv) {
    if (argc < 3) fail(EINVAL);
    const char *verb = argv[1], *device = argv[2];
    int reading = !strcmp(verb, "read") || !strcmp(verb, "size");
    if (!strncmp(device, "nbd:", 4)) open_nbd(device + 4);
    else open_path(device, !reading);
    uint64_t sector = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    uint64_t count = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;
    uint64_t stamp = argc > 5 ? strtoull(argv[5], NULL, 10) : 0;
    if (count > LIMIT_SECTORS) fail(EINVAL);
    uint64_t offset = sector * SECTOR_BYTES, len = count * SECTOR_BYTES;
    unsigned char *bytes = aligned_alloc(4096, (len + 4095) / 4096 * 4096 + 4096);
    if (!bytes) fail(ENOMEM);
    if (!strcmp(verb, "size")) {
        printf("%llu\n", (unsigned long long)(size_bytes / SECTOR_BYTES));
    } else if (!strcmp(verb, "read")) {
        transfer(0, offset, len, bytes);
        show(bytes, sector, count);
    } else if (!strcmp(verb, "write")) {
        for (uint64_t at = 0; at < len / 16; at++) {
            uint64_t pair[2] = {stamp, sector + at / (SECTOR_BYTES / 16)};
            memcpy(bytes + at * 16, pair, 16);
        }
        transfer(1, offset, len, bytes);
    } else if (!strcmp(verb, "zero") || !strcmp(verb, "discard")) {
        erase(!strcmp(verb, "zero"), offset, len);
    } else if (!strcmp(verb, "flush")) {
        if (is_nbd) nbd(NBD_FLUSH, 0, 0, NULL);
        else if (fsync(fd)) fail(errno);
    } else {
        fail(EINVAL);
    }
    return 0;
}
