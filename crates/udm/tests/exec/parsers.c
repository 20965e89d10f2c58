// Reads the status of every device through libdevmapper, and with its parser where it has one for
// the type (dm_get_status_*): prints a line for each target, fails if a parser does not take it.
#include <libdevmapper.h>
#include <stdio.h>
#include <string.h>

// Whether libdevmapper's own parser takes the status: 1, 0, or -1 where it has none for the type.
static int parsed(struct dm_pool *pool, const char *type, const char *params) {
    union {
        struct dm_status_mirror *mirror;
        struct dm_status_snapshot *snapshot;
        struct dm_status_thin_pool *thin_pool;
        struct dm_status_thin *thin;
        struct dm_status_cache *cache;
        struct dm_status_raid *raid;
    } as;
    if (!strcmp(type, "mirror")) return dm_get_status_mirror(pool, params, &as.mirror);
    if (!strcmp(type, "snapshot")) return dm_get_status_snapshot(pool, params, &as.snapshot);
    if (!strcmp(type, "thin-pool")) return dm_get_status_thin_pool(pool, params, &as.thin_pool);
    if (!strcmp(type, "thin")) return dm_get_status_thin(pool, params, &as.thin);
    if (!strcmp(type, "cache")) return dm_get_status_cache(pool, params, &as.cache);
    if (!strcmp(type, "raid")) return dm_get_status_raid(pool, params, &as.raid);
    return -1;
}

int main(int argc, char **argv) {
    struct dm_pool *pool = dm_pool_create("status", 1024);
    int failed = 0;
    if (argc == 2 && !strcmp(argv[1], "self-test")) {
        // A status in Linux's words, and one that is none.
        printf("%d %d\n", parsed(pool, "thin", "1024 2047"), parsed(pool, "thin", "what"));
        dm_pool_destroy(pool);
        return 0;
    }
    for (int at = 1; at < argc; at++) {
        struct dm_task *task = dm_task_create(DM_DEVICE_STATUS);
        if (!task || !dm_task_set_name(task, argv[at]) || !dm_task_run(task)) return 1;
        void *next = NULL;
        do {
            uint64_t start, length;
            char *type, *params;
            next = dm_get_next_target(task, next, &start, &length, &type, &params);
            int result = parsed(pool, type, params);
            printf("%s %llu %llu %s %s\n", argv[at], (unsigned long long)start,
                   (unsigned long long)length, type,
                   result < 0 ? "has no parser" : result ? "parsed" : "NOT PARSED");
            failed |= result == 0;
        } while (next);
        dm_task_destroy(task);
    }
    dm_pool_destroy(pool);
    return failed;
}
