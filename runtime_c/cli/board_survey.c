/* What is deployed on this machine, as one JSON object. Changes nothing. */
#include "posix.h"

#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "board.h"
#include "cpu.h"

typedef struct listing {
    buffer json;
    const char *ending; /* of the store's files that are listed */
    char model[name_cap + 1];
    bool first, first_slot;
} listing;

static ellm_status list_file(const char *name, void *user, ellm_error *error) {
    listing *l = user;
    char path[path_cap], digits[65];
    struct stat status;
    snprintf(digits, sizeof digits, "%s", name);
    if (is_digits(digits, 64) && strcmp(name + 64, l->ending) == 0
        && path_print(path, error, STORE "/%s", name) == ELLM_OK && lstat(path, &status) == 0) {
        buffer_print(&l->json, "%s\"%s\":%lld", l->first ? "" : ",", digits, (long long)status.st_size);
        l->first = false;
    }
    return ELLM_OK;
}

static ellm_status list_slot(const char *name, void *user, ellm_error *error) {
    listing *l = user;
    char path[path_cap];
    ellm_bundle bundle;
    ellm_error why = {""};
    if (!is_digits(name, slot_digits)) {
        return ELLM_OK;
    }
    ellm_status status = path_print(path, error, MODELS "/%s/%s", l->model, name);
    if (status != ELLM_OK) {
        return status;
    }
    buffer_print(&l->json, "%s\"%s\":{", l->first_slot ? "" : ",", name);
    l->first_slot = false;
    if (ellm_bundle_open(path, &bundle, &why) == ELLM_OK) {
        uint64_t n_bytes = bundle.text_bytes;
        for (size_t i = 0; i < bundle.manifest.n_files; i++) {
            n_bytes += bundle.manifest.files[i].bytes;
        }
        buffer_print(&l->json, "\"manifest\":\"%s\",\"bytes\":%llu,\"verified\":%s,\"name\":", bundle.sha256,
                     (unsigned long long)n_bytes, ellm_bundle_is_vouched(&bundle) ? "true" : "false");
        buffer_put_json(&l->json, bundle.manifest.name, strlen(bundle.manifest.name));
        buffer_print(&l->json, ",\"scheme\":");
        buffer_put_json(&l->json, bundle.manifest.scheme, strlen(bundle.manifest.scheme));
        ellm_bundle_close(&bundle);
    } else {
        buffer_print(&l->json, "\"broken\":");
        buffer_put_json(&l->json, why.text, strlen(why.text));
    }
    buffer_put(&l->json, "}", 1);
    return ELLM_OK;
}

static ellm_status list_model(const char *name, void *user, ellm_error *error) {
    listing *l = user;
    char folder[path_cap], path[path_cap], slot[slot_digits + 1];
    static const char *const links[] = {"current", "previous"};
    if (!is_model(name)) {
        return ELLM_OK;
    }
    ellm_status status = path_print(folder, error, MODELS "/%s", name);
    buffer_print(&l->json, "%s\"%s\":{", l->first ? "" : ",", name);
    l->first = false;
    for (int i = 0; i < 2 && status == ELLM_OK; i++) {
        status = path_print(path, error, "%s/%s", folder, links[i]);
        bool there = status == ELLM_OK && link_read(path, slot);
        buffer_print(&l->json, "\"%s\":%s%s%s,", links[i], there ? "\"" : "", there ? slot : "null", there ? "\"" : "");
    }
    snprintf(l->model, sizeof l->model, "%s", name);
    l->first_slot = true;
    buffer_print(&l->json, "\"slots\":{");
    if (status == ELLM_OK) {
        status = folder_each(folder, list_slot, l, error);
    }
    buffer_print(&l->json, "}}");
    return status;
}

ellm_status board_survey(int n, char **words, ellm_error *error) {
    (void)n;
    (void)words;
    listing l = {.ending = "", .first = true};
    struct statvfs disk;
    if (statvfs(".", &disk) != 0) {
        return path_failed(".", "no file system", error);
    }
    buffer_print(&l.json, "{\"board\":1,\"version\":\"%s\",\"arch\":\"%s\",\"free_bytes\":%llu,\"store\":{", RT_VERSION,
                 ellm_cpu_arch(), (unsigned long long)disk.f_bavail * disk.f_frsize);
    ellm_status status = folder_each(STORE, list_file, &l, error);
    buffer_print(&l.json, "},\"parts\":{");
    l.ending = ".part";
    l.first = true;
    if (status == ELLM_OK) {
        status = folder_each(STORE, list_file, &l, error);
    }
    buffer_print(&l.json, "},\"models\":{");
    l.first = true;
    if (status == ELLM_OK) {
        status = folder_each(MODELS, list_model, &l, error);
    }
    buffer_print(&l.json, "}}");
    if (status == ELLM_OK) {
        board_say(&l.json);
    }
    buffer_free(&l.json);
    return status;
}
