/* The store: each file once, under its SHA-256. A file has that name only when it is whole, hashed and on the disk. */
#include "posix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "board.h"

enum {
    block_bytes = 1 << 20, /* what a resumed upload is compared in */
    piece_bytes = 1 << 18,
    ack_bytes = 1 << 17,
    write_bytes = 4 << 20,  /* after so many the kernel is told to begin writing, */
    flush_bytes = 32 << 20, /* and after so many we wait for it: no flush at the end takes for ever on a slow card */
};

static ellm_status store_path(const char *sha256, const char *ending, char path[path_cap], ellm_error *error) {
    return is_digits(sha256, 64) ? path_print(path, error, STORE "/%s%s", sha256, ending)
                                 : ellm_fail(error, ELLM_USAGE, "'%.80s' is no SHA-256", sha256);
}

static bool read_number(const char *text, uint64_t *number) {
    char *end;
    errno = 0;
    *number = strtoull(text, &end, 10);
    return text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0 && *number <= INT64_MAX;
}

bool store_has(const char *sha256, uint64_t n_bytes) {
    char path[path_cap];
    struct stat status;
    return store_path(sha256, "", path, NULL) == ELLM_OK && lstat(path, &status) == 0 && S_ISREG(status.st_mode)
           && (uint64_t)status.st_size == n_bytes;
}

/* ---- links ---- */

static ellm_status copy(const char *from, const char *to, uint64_t *copied_bytes, ellm_error *error) {
    int in = open(from, O_RDONLY | O_CLOEXEC);
    struct stat status;
    int out = -1;
    bool good = in >= 0 && fstat(in, &status) == 0
                && (out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, status.st_mode & 0777)) >= 0;
    char *data = malloc(piece_bytes);
    for (ssize_t n = 1; good && n > 0;) {
        n = data == NULL ? -1 : read(in, data, piece_bytes);
        good = n == 0 || (n > 0 && write(out, data, (size_t)n) == n);
        *copied_bytes += good ? (uint64_t)n : 0;
    }
    good = good && fsync(out) == 0;
    ellm_status result = good ? ELLM_OK : path_failed(to, "cannot be copied", error);
    free(data);
    if (in >= 0) {
        close(in);
    }
    if (out >= 0) {
        close(out);
    }
    return result;
}

ellm_status store_link(const char *sha256, const char *path, uint64_t *copied_bytes, ellm_error *error) {
    char from[path_cap], fresh[path_cap];
    ellm_status status = store_path(sha256, "", from, error);
    if (status == ELLM_OK) {
        status = path_print(fresh, error, "%s.new", path);
    }
    if (status != ELLM_OK) {
        return status;
    }
    struct stat a, b;
    if (stat(from, &a) == 0 && stat(path, &b) == 0 && a.st_ino == b.st_ino && a.st_dev == b.st_dev) {
        return ELLM_OK; /* rename would do nothing with two names of one file */
    }
    unlink(fresh);
    if (link(from, fresh) != 0) {
        /* Not on this file system, not for this user (EACCES: Android's SELinux), not across two, no more for this file. */
        if (errno != EPERM && errno != EACCES && errno != EOPNOTSUPP && errno != ENOSYS && errno != EXDEV
            && errno != EMLINK) {
            return path_failed(path, "cannot be linked", error);
        }
        status = copy(from, fresh, copied_bytes, error);
    }
    if (status == ELLM_OK && rename(fresh, path) != 0) {
        status = path_failed(path, "cannot be linked", error);
    }
    if (status != ELLM_OK) {
        unlink(fresh);
    }
    return status;
}

bool store_can_link(void) {
    static const char probe[] = STORE "/.probe", second[] = MODELS "/.probe";
    unlink(second);
    int file = open(probe, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    bool can = file >= 0 && link(probe, second) == 0;
    if (file >= 0) {
        close(file);
    }
    unlink(second);
    unlink(probe);
    return can;
}

/* ---- receiving ---- */

static ellm_status hash_part(int file, uint64_t n_bytes, ellm_sha256 *sha, const char *path, ellm_error *error) {
    char *data = malloc(piece_bytes);
    ellm_status status = data == NULL ? ellm_fail(error, ELLM_NO_MEMORY, "%s: no memory to read it", path) : ELLM_OK;
    for (uint64_t at = 0; at < n_bytes && status == ELLM_OK;) {
        size_t want = n_bytes - at < piece_bytes ? (size_t)(n_bytes - at) : piece_bytes;
        ssize_t n = pread(file, data, want, (off_t)at);
        if (n <= 0) {
            status = n < 0 ? path_failed(path, "cannot be read", error)
                           : ellm_fail(error, ELLM_USAGE, "%s: shorter than the offset", path);
        } else {
            ellm_sha256_update(sha, data, (size_t)n);
            at += (uint64_t)n;
        }
    }
    free(data);
    return status;
}

static ellm_status write_all(int file, const char *data, size_t n_bytes, const char *path, ellm_error *error) {
    while (n_bytes > 0) {
        ssize_t n = write(file, data, n_bytes);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return path_failed(path, "cannot be written", error);
        }
        data += n;
        n_bytes -= (size_t)n;
    }
    return ELLM_OK;
}

/* {"got":n}: bytes in files so far. The host never runs ahead of it by more than a MB, so that a connection that breaks
 * loses no more on the way. */
static void acknowledge(size_t n_bytes) {
    static uint64_t got, said;
    got += n_bytes;
    if (got - said >= ack_bytes) {
        said = got;
        buffer line = {0};
        buffer_print(&line, "{\"got\":%llu}", (unsigned long long)got);
        board_say(&line);
        buffer_free(&line);
    }
}

/* Copies n_bytes of standard input behind what the file holds. The bytes so far stay there whatever happens. */
static ellm_status take(int file, uint64_t start, uint64_t end, ellm_sha256 *sha, const char *path, ellm_error *error) {
    char *data = malloc(piece_bytes);
    ellm_status status = data == NULL ? ellm_fail(error, ELLM_NO_MEMORY, "%s: no memory to write it", path) : ELLM_OK;
    uint64_t at = start, begun = start, flushed = start;
    while (at < end && status == ELLM_OK) {
        size_t n, want = end - at < piece_bytes ? (size_t)(end - at) : piece_bytes;
        status = board_read(data, want, &n, error);
        if (status == ELLM_OK && n == 0) {
            status = ellm_fail(error, ELLM_CANCELLED, "the connection ended in the middle of a file; deploy again");
        }
        if (status == ELLM_OK) {
            status = write_all(file, data, n, path, error);
        }
        if (status != ELLM_OK) {
            break;
        }
        ellm_sha256_update(sha, data, n);
        at += n;
        acknowledge(n);
        if (at - begun >= write_bytes) {
#ifndef __ANDROID__ /* which has it since API 26; it is a hint */
            (void)sync_file_range(file, (off_t)begun, (off_t)(at - begun), SYNC_FILE_RANGE_WRITE);
#endif
            begun = at;
        }
        if (at - flushed >= flush_bytes) {
            if (fdatasync(file) != 0) {
                status = path_failed(path, "cannot be flushed to the disk", error);
            }
            flushed = at;
        }
    }
    free(data);
    return status;
}

/* Whole and hashed: gives the file its name. mtime is 1 so that any later write shows (board_stamps.c). */
static ellm_status keep(int file, const char *part, const char *path, bool program, ellm_error *error) {
    const struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    if (fchmod(file, program ? 0555 : 0444) != 0 || futimens(file, times) != 0 || fsync(file) != 0) {
        return path_failed(part, "cannot be flushed to the disk", error);
    }
    return rename(part, path) == 0 ? ELLM_OK : path_failed(path, "cannot be renamed", error);
}

/* Opens what is to be received, anew if offset is 0. If the power failed within keep(), it may not be written to yet. */
static int open_part(const char *part, uint64_t offset) {
    int flags = O_CLOEXEC | O_NOFOLLOW;
    if (offset == 0) {
        return open(part, O_RDWR | O_CREAT | O_EXCL | flags, 0644);
    }
    int file = open(part, O_RDWR | flags);
    if (file < 0 && errno == EACCES) {
        int sealed = open(part, O_RDONLY | flags);
        if (sealed >= 0) {
            (void)fchmod(sealed, 0644);
            close(sealed);
            file = open(part, O_RDWR | flags);
        }
    }
    return file;
}

/* receive SHA256 BYTES OFFSET [x], then BYTES - OFFSET bytes. x: it is a program. */
ellm_status board_receive(int n, char **words, ellm_error *error) {
    char path[path_cap], part[path_cap];
    uint64_t n_bytes, offset;
    if (!read_number(words[2], &n_bytes) || !read_number(words[3], &offset) || offset > n_bytes) {
        return ellm_fail(error, ELLM_USAGE, "receive: '%.40s' and '%.40s' are no size and offset", words[2], words[3]);
    }
    ellm_status status = store_path(words[1], "", path, error);
    if (status == ELLM_OK) {
        status = store_path(words[1], ".part", part, error);
    }
    if (status != ELLM_OK) {
        return status;
    }
    if (offset == 0) {
        unlink(part);
    }
    int file = open_part(part, offset);
    if (file < 0) {
        return path_failed(part, "cannot be written", error);
    }
    ellm_sha256 sha;
    ellm_sha256_init(&sha);
    status = hash_part(file, offset, &sha, part, error);
    if (status == ELLM_OK && (ftruncate(file, (off_t)offset) != 0 || lseek(file, (off_t)offset, SEEK_SET) < 0)) {
        status = path_failed(part, "cannot be written", error);
    }
    if (status == ELLM_OK) {
        status = take(file, offset, n_bytes, &sha, part, error);
    }
    char hex[65];
    ellm_sha256_hex(&sha, hex);
    if (status == ELLM_OK && strcmp(hex, words[1]) != 0) {
        unlink(part);
        status =
            ellm_fail(error, ELLM_BUNDLE_CORRUPT,
                      "%s: what arrived does not match its SHA-256; leave the bundle alone while it is sent", path);
    }
    if (status == ELLM_OK) {
        status = keep(file, part, path, n > 4 && strcmp(words[4], "x") == 0, error);
    }
    close(file);
    if (status == ELLM_OK) {
        buffer line = {0};
        buffer_print(&line, "{\"stored\":\"%s\"}", words[1]);
        board_say(&line);
        buffer_free(&line);
    }
    return status;
}

/* blocks SHA256: the SHA-256 of each MB of an unfinished file, the last one as long as it is. */
ellm_status board_blocks(int n, char **words, ellm_error *error) {
    (void)n;
    char path[path_cap], hex[65];
    ellm_status status = store_path(words[1], ".part", path, error);
    if (status != ELLM_OK) {
        return status;
    }
    buffer line = {0};
    uint64_t at = 0;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    char *data = malloc(block_bytes);
    buffer_print(&line, "{\"blocks\":[");
    for (ssize_t got = 1; file >= 0 && status == ELLM_OK && got > 0;) {
        size_t held = 0;
        while (data != NULL && held < block_bytes
               && (got = pread(file, data + held, block_bytes - held, (off_t)(at + held))) > 0) {
            held += (size_t)got;
        }
        if (data == NULL || got < 0) {
            status = path_failed(path, "cannot be read", error);
        } else if (held > 0) {
            ellm_sha256 sha;
            ellm_sha256_init(&sha);
            ellm_sha256_update(&sha, data, held);
            ellm_sha256_hex(&sha, hex);
            buffer_print(&line, "%s\"%s\"", at > 0 ? "," : "", hex);
            at += held;
            board_progress("comparing", at, at);
        }
    }
    buffer_print(&line, "],\"bytes\":%llu}", (unsigned long long)at);
    if (status == ELLM_OK) {
        board_say(&line);
    }
    if (file >= 0) {
        close(file);
    }
    free(data);
    buffer_free(&line);
    return status;
}

/* ---- collecting ---- */

typedef struct collection {
    buffer kept; /* SHA-256 of every file that a kept slot refers to, 64 digits each */
    char model[name_cap + 1];
    char current[slot_digits + 1], previous[slot_digits + 1];
    uint64_t freed_bytes;
    size_t n_removed;
} collection;

static ellm_status remove_counted(const char *path, collection *c, ellm_error *error) {
    c->n_removed++;
    return tree_remove(path, &c->freed_bytes, error);
}

/* Half-written files have such names (stamps, links, measurements); nobody writes them while we hold the lock, and
 * what a running program writes besides is written again. */
static ellm_status collect_fresh(const char *name, void *user, ellm_error *error) {
    size_t n = strlen(name);
    char path[path_cap];
    ellm_status status = path_print(path, error, "%s/%s", (const char *)user, name);
    return status != ELLM_OK || n < 4 || strcmp(name + n - 4, ".new") != 0 ? status : tree_remove(path, NULL, error);
}

/* An entry of a model's folder: a slot in use is listed, everything else goes. */
static ellm_status collect_slot(const char *name, void *user, ellm_error *error) {
    collection *c = user;
    char path[path_cap];
    ellm_status status = path_print(path, error, MODELS "/%s/%s", c->model, name);
    if (status != ELLM_OK || strcmp(name, "current") == 0 || strcmp(name, "previous") == 0) {
        return status;
    }
    if (strcmp(name, c->current) != 0 && strcmp(name, c->previous) != 0) {
        return remove_counted(path, c, error);
    }
    ellm_bundle bundle;
    if (ellm_bundle_open(path, &bundle, NULL) == ELLM_OK) { /* damaged: its hard links still keep its files */
        buffer_put(&c->kept, bundle.sha256, 64);
        for (size_t i = 0; i < bundle.manifest.n_files; i++) {
            buffer_put(&c->kept, bundle.manifest.files[i].sha256, 64);
        }
        ellm_bundle_close(&bundle);
    }
    char weights[path_cap];
    status = folder_each(path, collect_fresh, path, error);
    if (status == ELLM_OK) {
        status = path_print(weights, error, "%s/weights", path);
    }
    if (status == ELLM_OK) {
        status = folder_each(weights, collect_fresh, weights, error);
    }
    return status;
}

static ellm_status collect_model(const char *name, void *user, ellm_error *error) {
    collection *c = user;
    char folder[path_cap], path[path_cap];
    if (!is_model(name)) {
        return ELLM_OK; /* not ours */
    }
    snprintf(c->model, sizeof c->model, "%s", name);
    c->current[0] = c->previous[0] = '\0';
    ellm_status status = path_print(folder, error, MODELS "/%s", name);
    if (status == ELLM_OK) {
        status = path_print(path, error, "%s/current", folder);
    }
    if (status == ELLM_OK) {
        (void)link_read(path, c->current);
        status = path_print(path, error, "%s/previous", folder);
    }
    if (status != ELLM_OK) {
        return status;
    }
    if (c->current[0] == '\0') { /* nothing was ever promoted, or it is being undeployed */
        unlink(path);
    } else {
        (void)link_read(path, c->previous);
    }
    status = folder_each(folder, collect_slot, c, error);
    if (status == ELLM_OK && c->current[0] == '\0') {
        rmdir(folder);
    } else if (status == ELLM_OK) {
        status = folder_sync(folder, error);
    }
    return status;
}

static ellm_status collect_file(const char *name, void *user, ellm_error *error) {
    collection *c = user;
    char path[path_cap];
    struct stat status;
    ellm_status result = path_print(path, error, STORE "/%s", name);
    if (result != ELLM_OK || lstat(path, &status) != 0) {
        return result;
    }
    if (is_digits(name, 64)) {
        if (status.st_nlink > 1) {
            return ELLM_OK;
        }
        for (size_t i = 0; i < c->kept.n; i += 64) {
            if (memcmp(c->kept.data + i, name, 64) == 0) {
                return ELLM_OK;
            }
        }
    }
    return remove_counted(path, c, error);
}

ellm_status store_collect(uint64_t *freed_bytes, size_t *n_removed, ellm_error *error) {
    collection c = {0};
    stamps *held = NULL;
    ellm_status status = stamps_remember(&held, error);
    if (status == ELLM_OK) {
        status = folder_each(MODELS, collect_model, &c, error);
    }
    if (status == ELLM_OK) {
        status = folder_each(STORE, collect_file, &c, error);
    }
    stamps_renew(held);
    unlink(INSTALLED ".new");
    if (status == ELLM_OK) {
        status = folder_sync(STORE, error);
    }
    *freed_bytes += c.freed_bytes;
    *n_removed += c.n_removed;
    buffer_free(&c.kept);
    return status;
}

ellm_status board_gc(int n, char **words, ellm_error *error) {
    (void)n;
    (void)words;
    uint64_t freed_bytes = 0;
    size_t n_removed = 0;
    ellm_status status = store_collect(&freed_bytes, &n_removed, error);
    if (status == ELLM_OK) {
        char text[96];
        snprintf(text, sizeof text, "%zu removed, %llu bytes freed", n_removed, (unsigned long long)freed_bytes);
        log_write("gc", "", "", status, text);
        buffer line = {0};
        buffer_print(&line, "{\"freed_bytes\":%llu,\"removed\":%zu}", (unsigned long long)freed_bytes, n_removed);
        board_say(&line);
        buffer_free(&line);
    }
    return status;
}
