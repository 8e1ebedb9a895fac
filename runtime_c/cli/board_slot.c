/* Slots: a version of a model is built beside the others, proves itself, and is switched to in one step.
 *
 * models/NAME/current is a symbolic link, replaced by a rename: at any moment, power cuts included, it names one whole
 * slot. models/NAME/previous names the one before. A slot under construction ends in .part. */
#include "posix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "board.h"
#include "cpu.h"

typedef struct promotion {
    const char *model, *sha256;
    char folder[path_cap], slot[slot_digits + 1], slot_path[path_cap], part_path[path_cap];
    const char *path; /* where it is built: slot_path if that exists, to be mended there, else part_path */
    ellm_bundle bundle;
    ellm_file stored; /* manifest.enc, if there is one */
    trust trust;
    bool exists, open;
    buffer missing; /* JSON strings: SHA-256 of what must be sent */
    uint64_t copied_bytes, n_hashed, n_total;
} promotion;

/* ---- building ---- */

static void note_missing(promotion *p, const char *sha256) {
    buffer_print(&p->missing, "%s\"%s\"", p->missing.n > 0 ? "," : "", sha256);
}

/* manifest.json and the digest that goes with it. */
static ellm_status put_manifest(promotion *p, ellm_error *error) {
    char path[path_cap], fresh[path_cap];
    ellm_status status = path_print(path, error, "%s/manifest.json", p->path);
    if (status == ELLM_OK) {
        status = store_link(p->sha256, path, &p->copied_bytes, error);
    }
    if (status == ELLM_OK) {
        status = path_print(path, error, "%s/manifest.sha256", p->path);
    }
    if (status == ELLM_OK) {
        status = path_print(fresh, error, "%s.new", path);
    }
    if (status != ELLM_OK) {
        return status;
    }
    int file = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    bool good = file >= 0 && dprintf(file, "%s  manifest.json\n", p->sha256) > 0 && fsync(file) == 0;
    if (file >= 0) {
        good = close(file) == 0 && good;
    }
    return good && rename(fresh, path) == 0 ? ELLM_OK : path_failed(path, "cannot be written", error);
}

/* A file beside the manifest that it does not list, such as its signature: manifest.sig=SHA256. */
static ellm_status put_beside(promotion *p, const char *word, ellm_error *error) {
    char path[path_cap], name[32];
    const char *sha256 = strchr(word, '=') + 1;
    snprintf(name, sizeof name, "%.*s", (int)(sha256 - word - 1), word);
    if (strncmp(name, "manifest.", 9) != 0
        || strspn(name + 9, "abcdefghijklmnopqrstuvwxyz0123456789") != strlen(name + 9)
        || strcmp(name, "manifest.json") == 0 || strcmp(name, "manifest.sha256") == 0 || !is_digits(sha256, 64)) {
        return ellm_fail(error, ELLM_USAGE, "promote: '%.100s' is no manifest.NAME=SHA256", word);
    }
    ellm_status status = path_print(path, error, "%s/%s", p->path, name);
    if (status == ELLM_OK && strcmp(name, "manifest.sig") == 0 && p->trust.files.pinned != NULL) {
        status = signature_prove(p->sha256, sha256, p->trust.files.pinned, error); /* p->path may be in use */
    }
    return status == ELLM_OK ? store_link(sha256, path, &p->copied_bytes, error) : status;
}

/* Calls `each` for every folder between the slot and a file, the outer ones first. */
static ellm_status each_parent(const promotion *p, const char *file,
                               ellm_status (*each)(const char *path, ellm_error *error), ellm_error *error) {
    ellm_status status = ELLM_OK;
    for (const char *slash = strchr(file, '/'); slash != NULL && status == ELLM_OK; slash = strchr(slash + 1, '/')) {
        char path[path_cap];
        status = path_print(path, error, "%s/%.*s", p->path, (int)(slash - file), file);
        if (status == ELLM_OK) {
            status = each(path, error);
        }
    }
    return status;
}

static ellm_status link_files(promotion *p, ellm_error *error) {
    const ellm_manifest *manifest = &p->bundle.manifest;
    ellm_status status = ELLM_OK;
    for (size_t i = 0; i < manifest->n_files && status == ELLM_OK; i++) {
        const ellm_manifest_file *file = &manifest->files[i];
        char path[path_cap];
        uint64_t bytes;
        char held[65];
        const char *sha256 = stored_sha256(&p->stored, file, &bytes, held);
        status = path_print(path, error, "%s/%s", p->path, file->path);
        if (status == ELLM_OK) {
            status = each_parent(p, file->path, folder_make, error);
        }
        if (status == ELLM_OK && store_has(sha256, bytes)) {
            status = store_link(sha256, path, &p->copied_bytes, error);
        }
    }
    for (size_t i = 0; i < manifest->n_files && status == ELLM_OK; i++) {
        status = each_parent(p, manifest->files[i].path, folder_sync, error);
    }
    return status == ELLM_OK ? folder_sync(p->path, error) : status;
}

/* What neither the store nor a slot that is to be mended has. */
static void find_missing(promotion *p) {
    for (size_t i = 0; i < p->bundle.manifest.n_files; i++) {
        const ellm_manifest_file *file = &p->bundle.manifest.files[i];
        char path[path_cap];
        struct stat status;
        uint64_t bytes;
        char held[65];
        const char *sha256 = stored_sha256(&p->stored, file, &bytes, held);
        bool there = store_has(sha256, bytes)
                     || (p->exists && path_print(path, NULL, "%s/%s", p->path, file->path) == ELLM_OK
                         && stat(path, &status) == 0 && (uint64_t)status.st_size == bytes);
        if (!there) {
            note_missing(p, sha256);
        }
    }
}

static void count_hashed(uint64_t n_bytes, void *user) {
    promotion *p = user;
    p->n_hashed += n_bytes;
    board_progress("verifying", p->n_hashed, p->n_total);
}

/* Hashes every file. What is damaged leaves the store and is missing then; nothing missing: the stamp is written. */
static ellm_status verify(promotion *p, ellm_error *error) {
    const ellm_manifest *manifest = &p->bundle.manifest;
    size_t n_files = manifest->n_files;
    ellm_file_stamp *before = calloc(n_files + 1, sizeof *before);
    ellm_status status = before != NULL ? ELLM_OK : ellm_fail(error, ELLM_NO_MEMORY, "no memory to verify");
    ellm_sha256 empty;
    ellm_sha256_init(&empty);
    for (size_t i = 0; i < n_files; i++) {
        p->n_total += manifest->files[i].bytes;
    }
    for (size_t i = 0; i < n_files && status == ELLM_OK; i++) {
        const ellm_manifest_file *file = &manifest->files[i];
        char path[path_cap];
        status = ellm_file_stamp_read(p->bundle.directory, file->path, &before[i], error);
        if (status == ELLM_OK) {
            status = ellm_bundle_check_file(&p->bundle, file, &empty, count_hashed, p, error);
        }
        if (status == ELLM_BUNDLE_CORRUPT || status == ELLM_BUNDLE_MISSING || status == ELLM_DECRYPTION_FAILED) {
            uint64_t bytes;
            char held[65];
            const char *sha256 = stored_sha256(&p->stored, file, &bytes, held);
            note_missing(p, sha256);
            status = path_print(path, error, STORE "/%s", sha256);
            if (status == ELLM_OK && unlink(path) != 0 && errno != ENOENT) {
                status = path_failed(path, "is damaged and cannot be removed", error);
            }
        }
    }
    if (status == ELLM_OK && p->missing.n == 0) {
        ellm_bundle_vouch(&p->bundle, before);
    }
    free(before);
    return status;
}

/* Everything is in its place and hashed, or `missing` says what is not. */
static ellm_status build(promotion *p, int n_beside, char **beside, ellm_error *error) {
    stamps *held = NULL;
    ellm_status status = stamps_remember(&held, error);
    if (status == ELLM_OK && !p->exists) {
        status = tree_remove(p->part_path, NULL, error);
        if (status == ELLM_OK) {
            status = folder_make(p->part_path, error);
        }
    }
    if (status == ELLM_OK) {
        status = put_manifest(p, error);
    }
    for (int i = 0; i < n_beside && status == ELLM_OK; i++) {
        status = put_beside(p, beside[i], error);
    }
    if (status == ELLM_OK) {
        status = ellm_bundle_open_trusted(p->path, &p->trust.files, &p->bundle, error);
        p->open = status == ELLM_OK;
    }
    if (status == ELLM_OK) {
        if (!beside_has("manifest.enc", n_beside, beside)) {
            unlinkat(p->bundle.directory, "manifest.enc", 0); /* the signature may stay: it is of this manifest */
        }
        status = ellm_file_map(p->bundle.directory, "manifest.enc", &p->stored, error);
        status = status == ELLM_BUNDLE_MISSING ? ELLM_OK : status;
    }
    if (status == ELLM_OK) {
        status = ellm_bundle_check_cpu(&p->bundle, error);
    }
    if (status == ELLM_OK) {
        find_missing(p);
        status = p->missing.n == 0 ? link_files(p, error) : ELLM_OK;
    }
    stamps_renew(held);
    if (status == ELLM_OK && p->missing.n == 0) {
        status = verify(p, error);
    }
    return status;
}

/* Removes what was built, and keeps the stamps of slots that share files with it. */
static void discard(promotion *p) {
    stamps *held = NULL;
    if (!p->exists && stamps_remember(&held, NULL) == ELLM_OK) {
        (void)tree_remove(p->part_path, NULL, NULL);
        rmdir(p->folder);
    }
    stamps_renew(held);
}

/* ---- switching ---- */

static ellm_status switch_to(const char *folder, const char *slot, ellm_error *error) {
    char path[path_cap], now[slot_digits + 1] = "";
    ellm_status status = path_print(path, error, "%s/current", folder);
    if (status == ELLM_OK && link_read(path, now) && strcmp(now, slot) != 0) {
        status = link_write(folder, "previous", now, error);
    }
    return status == ELLM_OK ? link_write(folder, "current", slot, error) : status;
}

/* The program of the model promoted last is the one that will judge the next. */
static ellm_status install(const ellm_bundle *bundle, ellm_error *error) {
    const ellm_manifest_file *program = ellm_bundle_find(bundle, "edgellm-rt");
    uint64_t copied_bytes = 0;
    if (program == NULL || !store_has(program->sha256, program->bytes)) {
        return ELLM_OK;
    }
    ellm_status status = store_link(program->sha256, INSTALLED, &copied_bytes, error);
    return status == ELLM_OK ? folder_sync(".", error) : status;
}

static bool is_current(const char *folder, const char *slot) {
    char path[path_cap], now[slot_digits + 1];
    return path_print(path, NULL, "%s/current", folder) == ELLM_OK && link_read(path, now) && strcmp(now, slot) == 0;
}

/* Whether this is in use already, and sound as far as its stamp tells. */
static bool is_unchanged(const promotion *p, int n_beside, char **beside) {
    ellm_bundle bundle;
    struct stat note;
    if (!is_current(p->folder, p->slot)
        || ellm_bundle_open_trusted(p->slot_path, &p->trust.files, &bundle, NULL) != ELLM_OK) {
        return false;
    }
    bool sound = strcmp(bundle.sha256, p->sha256) == 0 && beside_is_same(bundle.directory, n_beside, beside)
                 && fstatat(bundle.directory, ".gpu", &note, 0) != 0 /* a GPU that failed may do better now */
                 && ellm_bundle_check_files(&bundle, false, NULL, NULL, NULL) == ELLM_OK;
    ellm_bundle_close(&bundle);
    return sound;
}

static ellm_status finish(promotion *p, const proof *shown, ellm_error *error) {
    ellm_status status = ELLM_OK;
    if (!p->exists && rename(p->part_path, p->slot_path) != 0) {
        status = path_failed(p->slot_path, "cannot be renamed", error);
    }
    if (status == ELLM_OK) {
        status = folder_sync(p->folder, error);
    }
    if (status == ELLM_OK) {
        status = switch_to(p->folder, p->slot, error);
    }
    if (status != ELLM_OK) {
        return status;
    }
    p->exists = true; /* from here on nothing is taken back */
    log_write("promote", p->model, p->slot, status, "in use");
    uint64_t freed_bytes = 0;
    size_t n_removed = 0;
    if (install(&p->bundle, error) != ELLM_OK || store_collect(&freed_bytes, &n_removed, error) != ELLM_OK) {
        log_write("tidy", p->model, p->slot, ELLM_IO, error->text); /* the next gc will */
    }
    buffer line = {0};
    buffer_print(&line, "{\"promoted\":\"%s\",\"copied_bytes\":%llu,\"freed_bytes\":%llu,", p->slot,
                 (unsigned long long)p->copied_bytes, (unsigned long long)freed_bytes);
    proof_print(shown, &line);
    buffer_put(&line, "}", 1);
    board_say(&line);
    buffer_free(&line);
    return ELLM_OK;
}

static void say_missing(const promotion *p) {
    buffer line = {0};
    buffer_print(&line, "{\"missing\":[%s]}", p->missing.data);
    board_say(&line);
    buffer_free(&line);
}

/* promote NAME SHA256 [quick] [manifest.NAME=SHA256...]: makes the bundle of this manifest the one in use. */
ellm_status board_promote(int n, char **words, ellm_error *error) {
    promotion p = {.model = words[1], .sha256 = words[2]};
    bool quick = n > 3 && strcmp(words[3], "quick") == 0;
    int first_beside = quick ? 4 : 3;
    if (!is_model(p.model) || !is_digits(p.sha256, 64)) {
        return ellm_fail(error, ELLM_USAGE, "promote: '%.70s' and '%.70s' are no name and SHA-256", p.model, p.sha256);
    }
    for (int i = first_beside; i < n; i++) {
        if (strchr(words[i], '=') == NULL) {
            return ellm_fail(error, ELLM_USAGE, "promote: '%.70s' is not understood", words[i]);
        }
    }
    memcpy(p.slot, p.sha256, slot_digits);
    trust_in(".", &p.trust);
    ellm_status status = path_print(p.folder, error, MODELS "/%s", p.model);
    if (status == ELLM_OK) {
        status = path_print(p.slot_path, error, "%s/%s", p.folder, p.slot);
    }
    if (status == ELLM_OK) {
        status = path_print(p.part_path, error, "%s.part", p.slot_path);
    }
    if (status == ELLM_OK && quick && is_unchanged(&p, n - first_beside, words + first_beside)) {
        buffer line = {0};
        buffer_print(&line, "{\"unchanged\":\"%s\"}", p.slot);
        board_say(&line);
        buffer_free(&line);
        return ELLM_OK;
    }
    struct stat there;
    if (status == ELLM_OK && stat(STORE, &there) == 0) {
        status = folder_sync(STORE, error);
    }
    char path[path_cap];
    if (status == ELLM_OK) {
        status = path_print(path, error, STORE "/%s", p.sha256);
    }
    if (status == ELLM_OK && stat(path, &there) != 0) {
        note_missing(&p, p.sha256);
        say_missing(&p);
        buffer_free(&p.missing);
        return ELLM_OK;
    }
    if (status == ELLM_OK) {
        status = folder_make(p.folder, error);
    }
    p.exists = stat(p.slot_path, &there) == 0;
    p.path = p.exists ? p.slot_path : p.part_path;
    if (status == ELLM_OK) {
        status = build(&p, n - first_beside, words + first_beside, error);
    }
    proof shown;
    if (status == ELLM_OK && p.missing.n > 0) {
        say_missing(&p);
        discard(&p);
    } else {
        if (status == ELLM_OK) {
            status = proof_take(p.path, &p.bundle, &shown, error);
        }
        if (status == ELLM_OK) {
            status = finish(&p, &shown, error);
        }
        if (status != ELLM_OK) {
            log_write("promote", p.model, p.slot, status, error->text);
            discard(&p);
        }
    }
    if (p.open) {
        ellm_bundle_close(&p.bundle);
    }
    ellm_file_close(&p.stored);
    buffer_free(&p.missing);
    return status;
}

/* ---- back, and away ---- */

/* rollback NAME: the version before, if it is sound and answers its golden prompts. */
ellm_status board_rollback(int n, char **words, ellm_error *error) {
    (void)n;
    const char *model = words[1];
    char folder[path_cap], path[path_cap], previous[slot_digits + 1], now[slot_digits + 1] = "";
    if (!is_model(model)) {
        return ellm_fail(error, ELLM_USAGE, "rollback: '%.70s' is no model's name", model);
    }
    ellm_status status = path_print(folder, error, MODELS "/%s", model);
    if (status == ELLM_OK) {
        status = path_print(path, error, "%s/current", folder);
    }
    if (status == ELLM_OK) {
        (void)link_read(path, now);
        status = path_print(path, error, "%s/previous", folder);
    }
    if (status != ELLM_OK) {
        return status;
    }
    if (!link_read(path, previous) || strcmp(previous, now) == 0) {
        return ellm_fail(error, ELLM_BUNDLE_MISSING, "there is no version of %s before this one here", model);
    }
    ellm_bundle bundle;
    trust keys;
    trust_in(".", &keys);
    status = path_print(path, error, "%s/%s", folder, previous);
    if (status == ELLM_OK) {
        status = ellm_bundle_open_trusted(path, &keys.files, &bundle, error);
    }
    if (status != ELLM_OK) {
        log_write("rollback", model, previous, status, error->text);
        return status;
    }
    proof shown;
    status = ellm_bundle_check_files(&bundle, false, NULL, NULL, error);
    if (status == ELLM_OK) {
        status = proof_take(path, &bundle, &shown, error);
    }
    if (status == ELLM_OK) {
        status = switch_to(folder, previous, error);
    }
    ellm_bundle_close(&bundle);
    log_write("rollback", model, previous, status, status == ELLM_OK ? "in use" : error->text);
    if (status == ELLM_OK) {
        buffer line = {0};
        buffer_print(&line, "{\"promoted\":\"%s\",\"previous\":\"%s\",", previous, now);
        proof_print(&shown, &line);
        buffer_put(&line, "}", 1);
        board_say(&line);
        buffer_free(&line);
    }
    return status;
}

/* undeploy NAME: all versions of a model go, `current` first. */
ellm_status board_undeploy(int n, char **words, ellm_error *error) {
    (void)n;
    const char *model = words[1];
    char folder[path_cap], path[path_cap];
    struct stat there;
    if (!is_model(model)) {
        return ellm_fail(error, ELLM_USAGE, "undeploy: '%.70s' is no model's name", model);
    }
    ellm_status status = path_print(folder, error, MODELS "/%s", model);
    if (status == ELLM_OK && stat(folder, &there) != 0) {
        return ellm_fail(error, ELLM_BUNDLE_MISSING, "there is no model called %s here", model);
    }
    if (status == ELLM_OK) {
        status = path_print(path, error, "%s/current", folder);
    }
    if (status == ELLM_OK && unlink(path) != 0 && errno != ENOENT) {
        status = path_failed(path, "cannot be removed", error);
    }
    uint64_t freed_bytes = 0;
    size_t n_removed = 0;
    if (status == ELLM_OK) {
        status = folder_sync(folder, error);
    }
    if (status == ELLM_OK) {
        status = store_collect(&freed_bytes, &n_removed, error);
    }
    log_write("undeploy", model, "", status, status == ELLM_OK ? "removed" : error->text);
    if (status == ELLM_OK) {
        buffer line = {0};
        buffer_print(&line, "{\"undeployed\":\"%s\",\"freed_bytes\":%llu}", model, (unsigned long long)freed_bytes);
        board_say(&line);
        buffer_free(&line);
    }
    return status;
}
