/* Keeps the stamps of verified weights valid across linking and unlinking, which change a file's ctime.
 *
 * A stamp vouches for a file by inode, size and ctime (FORMAT.md): the kernel sets the ctime, so nothing that is
 * written to the file afterwards goes unnoticed. Before the change each stamp that vouches now is noted, with the
 * mtimes; after it, it is written anew where inode, size and mtime are the same. What is written to a file in between
 * sets its mtime to the present, and files of the store have the mtime 1, far from any present; a file whose mtime is
 * of this moment is not vouched for again, and hashed at the next open. */
#include "posix.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "board.h"

typedef struct held_stamp {
    ellm_bundle bundle;
    struct stat *files; /* one per file of the manifest; filled in for weights */
} held_stamp;

struct stamps {
    held_stamp *slots;
    size_t n;
    struct timespec began;
    char model[name_cap + 1];
};

static void release(held_stamp *slot) {
    ellm_bundle_close(&slot->bundle);
    free(slot->files);
}

static bool look(const held_stamp *slot, size_t i, struct stat *status) {
    return fstatat(slot->bundle.directory, slot->bundle.manifest.files[i].path, status, 0) == 0;
}

static ellm_status remember_slot(const char *name, void *user, ellm_error *error) {
    stamps *s = user;
    char path[path_cap];
    ellm_status status = path_print(path, error, MODELS "/%s/%s", s->model, name);
    if (status != ELLM_OK || !is_digits(name, slot_digits)) {
        return status;
    }
    held_stamp slot = {0};
    if (ellm_bundle_open(path, &slot.bundle, NULL) != ELLM_OK) {
        return ELLM_OK; /* nothing to keep valid */
    }
    slot.files = calloc(slot.bundle.manifest.n_files + 1, sizeof *slot.files);
    /* Noted before the stamp is checked: a change after this shows in the comparison, one before it in the check. */
    bool noted = slot.files != NULL;
    for (size_t i = 0; noted && i < slot.bundle.manifest.n_files; i++) {
        noted = !slot.bundle.manifest.files[i].is_weight || look(&slot, i, &slot.files[i]);
    }
    held_stamp *more = NULL;
    if (noted && ellm_bundle_is_vouched(&slot.bundle)) {
        more = realloc(s->slots, (s->n + 1) * sizeof *more);
    }
    if (more == NULL) {
        release(&slot);
        return ELLM_OK;
    }
    s->slots = more;
    s->slots[s->n++] = slot;
    return ELLM_OK;
}

static ellm_status remember_model(const char *name, void *user, ellm_error *error) {
    stamps *s = user;
    char folder[path_cap];
    if (!is_model(name)) {
        return ELLM_OK;
    }
    snprintf(s->model, sizeof s->model, "%s", name);
    ellm_status status = path_print(folder, error, MODELS "/%s", name);
    return status != ELLM_OK ? status : folder_each(folder, remember_slot, s, error);
}

ellm_status stamps_remember(stamps **held, ellm_error *error) {
    *held = calloc(1, sizeof **held);
    if (*held == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory to remember what is verified");
    }
    clock_gettime(CLOCK_REALTIME, &(*held)->began);
    return folder_each(MODELS, remember_model, *held, error);
}

static bool unchanged(const stamps *s, const struct stat *before, const struct stat *after) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    bool of_this_moment = before->st_mtim.tv_sec >= s->began.tv_sec - 2 && before->st_mtim.tv_sec <= now.tv_sec + 2;
    return !of_this_moment && before->st_dev == after->st_dev && before->st_ino == after->st_ino
           && before->st_size == after->st_size && before->st_mtim.tv_sec == after->st_mtim.tv_sec
           && before->st_mtim.tv_nsec == after->st_mtim.tv_nsec;
}

static void renew(const stamps *s, const held_stamp *slot) {
    const ellm_manifest *manifest = &slot->bundle.manifest;
    ellm_file_stamp *fresh = calloc(manifest->n_files + 1, sizeof *fresh);
    bool good = fresh != NULL, changed = false;
    for (size_t i = 0; good && i < manifest->n_files; i++) {
        const struct stat *before = &slot->files[i];
        struct stat after;
        if (!manifest->files[i].is_weight) {
            continue;
        }
        good = ellm_file_stamp_read(slot->bundle.directory, manifest->files[i].path, &fresh[i], NULL) == ELLM_OK
               && look(slot, i, &after) && (uint64_t)after.st_ino == fresh[i].inode;
        bool moved =
            good
            && (before->st_ctim.tv_sec != after.st_ctim.tv_sec || before->st_ctim.tv_nsec != after.st_ctim.tv_nsec);
        changed = changed || moved;
        good = good && (!moved || unchanged(s, before, &after));
    }
    if (good && changed) {
        ellm_bundle_vouch(&slot->bundle, fresh);
    }
    free(fresh);
}

void stamps_renew(stamps *held) {
    for (size_t i = 0; held != NULL && i < held->n; i++) {
        renew(held, &held->slots[i]);
        release(&held->slots[i]);
    }
    if (held != NULL) {
        free(held->slots);
    }
    free(held);
}
