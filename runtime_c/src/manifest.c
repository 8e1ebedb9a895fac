#include "manifest.h"

#include <string.h>

#include "error.h"
#include "json.h"

enum { most_positions = 1 << 24, most_text = 4096, most_system = 1 << 20 };

/* What one key must be; `offset` is where it goes in ellm_manifest, of the type that `kind` says. */
typedef enum kind { KIND_TEXT, KIND_INT32, KIND_UINT64, KIND_IGNORED_TEXT, KIND_IGNORED_INT } kind;
typedef struct field {
    char object[12], key[24];
    kind kind;
    int64_t least, most;
    size_t offset;
} field;

#define TO(name) offsetof(ellm_manifest, name)
static const field fields[] = {
    {"model", "name", KIND_TEXT, 0, 0, TO(name)},
    {"model", "architecture", KIND_TEXT, 0, 0, TO(architecture)},
    {"model", "vocab_size", KIND_INT32, 1, INT32_MAX / 8, TO(vocab_size)},
    {"model", "context_length", KIND_INT32, 1, most_positions, TO(context_length)},
    {"model", "sliding_window", KIND_INT32, 0, INT32_MAX / 2, TO(sliding_window)},
    {"model", "n_layers", KIND_IGNORED_INT, 1, INT32_MAX, 0},
    {"model", "parameters", KIND_IGNORED_INT, 1, INT64_MAX, 0},
    {"scheme", "name", KIND_TEXT, 0, 0, TO(scheme)},
    {"scheme", "body", KIND_IGNORED_TEXT, 0, 0, 0},
    {"scheme", "embedding", KIND_IGNORED_TEXT, 0, 0, 0},
    {"scheme", "head", KIND_IGNORED_TEXT, 0, 0, 0},
    {"scheme", "kv", KIND_IGNORED_TEXT, 0, 0, 0},
    {"target", "device", KIND_IGNORED_TEXT, 0, 0, 0},
    {"target", "arch", KIND_TEXT, 0, 0, TO(arch)},
    {"target", "os", KIND_IGNORED_TEXT, 0, 0, 0},
    {"target", "tier", KIND_TEXT, 0, 0, TO(tier)},
    {"memory", "weight_bytes", KIND_UINT64, 0, INT64_MAX, TO(weight_bytes)},
    {"memory", "arena_bytes", KIND_IGNORED_INT, 0, INT64_MAX, 0},
    {"memory", "arena_unplanned_bytes", KIND_IGNORED_INT, 0, INT64_MAX, 0},
    {"memory", "kv_bytes_per_token", KIND_IGNORED_INT, 0, INT64_MAX, 0},
};

static ellm_status bad(ellm_error *error, const char *object, const char *key, const char *expected) {
    return ellm_fail(error, ELLM_BUNDLE_FORMAT, "manifest.json: %s%s%.100s must be %s; compile the bundle again",
                     object, *key != '\0' ? "." : "", key, expected);
}

static ellm_status no_memory(ellm_error *error) {
    return ellm_fail(error, ELLM_NO_MEMORY, "manifest.json: no memory to read it");
}

static ellm_status read_fields(const ellm_json *root, ellm_region *region, ellm_manifest *manifest, ellm_error *error) {
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        const field *now = &fields[i];
        const ellm_json *value = ellm_json_get(ellm_json_get(root, now->object), now->key);
        char *to = (char *)manifest + now->offset;
        if (now->kind == KIND_TEXT || now->kind == KIND_IGNORED_TEXT) {
            const char *text = ellm_json_text(value, most_text);
            if (text == NULL) {
                return bad(error, now->object, now->key, "a text");
            }
            if (now->kind == KIND_TEXT) {
                text = ellm_region_text(region, text, strlen(text));
                if (text == NULL) {
                    return no_memory(error);
                }
                memcpy(to, &text, sizeof text);
            }
            continue;
        }
        int64_t number;
        if (!ellm_json_int(value, now->least, now->most, &number)) {
            return bad(error, now->object, now->key, "a whole number in range");
        }
        if (now->kind == KIND_INT32) {
            int32_t narrow = (int32_t)number;
            memcpy(to, &narrow, sizeof narrow);
        } else if (now->kind == KIND_UINT64) {
            memcpy(to, &number, sizeof number);
        }
    }
    return ELLM_OK;
}

static bool is_ids(const ellm_json *list, int32_t vocab_size) {
    int64_t id;
    if (list == NULL || list->kind != ELLM_JSON_ARRAY) {
        return false;
    }
    for (const ellm_json *item = list->first; item != NULL; item = item->next) {
        if (!ellm_json_int(item, 0, vocab_size - 1, &id)) {
            return false;
        }
    }
    return true;
}

static ellm_status read_generation(const ellm_json *root, ellm_region *region, ellm_manifest *manifest,
                                   ellm_error *error) {
    const ellm_json *generation = ellm_json_get(root, "generation"), *ids = ellm_json_get(generation, "stop_ids");
    if (!is_ids(ids, manifest->vocab_size)) {
        return bad(error, "generation", "stop_ids", "a list of token ids");
    }
    manifest->stop_ids = ellm_region_alloc(region, ids->count, sizeof *manifest->stop_ids);
    if (manifest->stop_ids == NULL) {
        return no_memory(error);
    }
    for (const ellm_json *id = ids->first; id != NULL; id = id->next) {
        manifest->stop_ids[manifest->n_stop_ids++] = (int32_t)id->integer;
    }
    manifest->sampling = (ellm_sampler_options){.top_p = 1, .repetition_penalty = 1};
    const struct {
        char key[20];
        double least, most;
        float *to;
    } numbers[] = {{"temperature", 0, 100, &manifest->sampling.temperature},
                   {"top_p", 0, 1, &manifest->sampling.top_p},
                   {"min_p", 0, 1, &manifest->sampling.min_p},
                   {"repetition_penalty", 0.01, 100, &manifest->sampling.repetition_penalty}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const ellm_json *value = ellm_json_get(generation, numbers[i].key);
        double number;
        if (value == NULL) {
            continue;
        }
        if (!ellm_json_real(value, &number) || !(number >= numbers[i].least && number <= numbers[i].most)) {
            return bad(error, "generation", numbers[i].key, "a number in range");
        }
        *numbers[i].to = (float)number;
    }
    int64_t number = 0;
    const ellm_json *top_k = ellm_json_get(generation, "top_k"), *bos = ellm_json_get(generation, "bos_id");
    if (top_k != NULL && !ellm_json_int(top_k, 0, INT32_MAX, &number)) {
        return bad(error, "generation", "top_k", "a whole number in range");
    }
    manifest->sampling.top_k = (int32_t)number;
    if (bos != NULL && !ellm_json_int(bos, 0, manifest->vocab_size - 1, &number)) {
        return bad(error, "generation", "bos_id", "a token id");
    }
    const ellm_json *golden = ellm_json_get(root, "golden");
    bool good = golden != NULL && golden->kind == ELLM_JSON_ARRAY;
    for (const ellm_json *item = good ? golden->first : NULL; item != NULL; item = item->next) {
        good = good && is_ids(ellm_json_get(item, "prompt"), manifest->vocab_size)
               && is_ids(ellm_json_get(item, "tokens"), manifest->vocab_size);
    }
    return good ? ELLM_OK : bad(error, "golden", "", "a list of prompts and tokens");
}

static ellm_status read_features(const ellm_json *root, ellm_region *region, ellm_manifest *manifest,
                                 ellm_error *error) {
    const ellm_json *list = ellm_json_get(ellm_json_get(root, "target"), "cpu_features");
    if (list == NULL || list->kind != ELLM_JSON_ARRAY) {
        return bad(error, "target", "cpu_features", "a list of names");
    }
    manifest->features = ellm_region_alloc(region, list->count, sizeof *manifest->features);
    if (manifest->features == NULL) {
        return no_memory(error);
    }
    for (const ellm_json *item = list->first; item != NULL; item = item->next) {
        const char *text = ellm_json_text(item, 64);
        if (text == NULL) {
            return bad(error, "target", "cpu_features", "a list of names");
        }
        text = ellm_region_text(region, text, strlen(text));
        if (text == NULL) {
            return no_memory(error);
        }
        manifest->features[manifest->n_features++] = text;
    }
    return ELLM_OK;
}

/* Relative, below the bundle, printable. */
static bool is_path(const char *path) {
    size_t part = 0; /* length of the part being read */
    for (const char *at = path;; at++) {
        if (*at == '/' || *at == '\0') {
            if (part == 0 || (part == 1 && at[-1] == '.') || (part == 2 && at[-1] == '.' && at[-2] == '.')) {
                return false;
            }
            part = 0;
        } else if ((unsigned char)*at < 0x20 || *at == '\\' || *at == 0x7f) {
            return false;
        } else {
            part++;
        }
        if (*at == '\0') {
            return at - path < 256;
        }
    }
}

static ellm_status read_files(const ellm_json *root, ellm_region *region, ellm_manifest *manifest, ellm_error *error) {
    const ellm_json *list = ellm_json_get(root, "files");
    if (list == NULL || list->kind != ELLM_JSON_OBJECT) {
        return bad(error, "files", "", "an object");
    }
    manifest->files = ellm_region_alloc(region, list->count, sizeof *manifest->files);
    if (manifest->files == NULL) {
        return no_memory(error);
    }
    for (const ellm_json *item = list->first; item != NULL; item = item->next) {
        ellm_manifest_file *file = &manifest->files[manifest->n_files++];
        const char *sha256 = ellm_json_text(ellm_json_get(item, "sha256"), 64);
        int64_t bytes;
        if (!is_path(item->key)) {
            return bad(error, "files", item->key, "a relative path inside the bundle");
        }
        if (!ellm_json_int(ellm_json_get(item, "bytes"), 0, INT64_MAX, &bytes) || sha256 == NULL
            || strspn(sha256, "0123456789abcdef") != 64) {
            return bad(error, "files", item->key, "{\"bytes\": size, \"sha256\": 64 hexadecimal digits}");
        }
        file->bytes = (uint64_t)bytes;
        memcpy(file->sha256, sha256, 65);
        file->is_weight = strncmp(item->key, "weights/", 8) == 0;
        file->path = ellm_region_text(region, item->key, strlen(item->key));
        if (file->path == NULL) {
            return no_memory(error);
        }
    }
    return ELLM_OK;
}

/* The state that the bundle ships, if it does, and the system prompt in it. */
static ellm_status read_prefix(const ellm_json *root, ellm_region *region, ellm_manifest *manifest, ellm_error *error) {
    const ellm_json *prefix = ellm_json_get(root, "prefix"), *system = ellm_json_get(prefix, "system");
    if (prefix == NULL) {
        return ELLM_OK;
    }
    const char *file = ellm_json_text(ellm_json_get(prefix, "file"), most_text);
    for (size_t i = 0; i < manifest->n_files && file != NULL; i++) {
        if (manifest->files[i].is_weight && strcmp(manifest->files[i].path, file) == 0) {
            manifest->prefix_file = manifest->files[i].path;
        }
    }
    if (manifest->prefix_file == NULL) {
        return bad(error, "prefix", "file", "one of files, below weights/");
    }
    if (system != NULL) {
        const char *text = ellm_json_text(system, most_system);
        if (text == NULL) {
            return bad(error, "prefix", "system", "a text");
        }
        manifest->prefix_system = ellm_region_text(region, text, strlen(text));
        return manifest->prefix_system != NULL ? ELLM_OK : no_memory(error);
    }
    return ELLM_OK;
}

ellm_status ellm_manifest_read(const char *text, size_t n_bytes, ellm_region *region, ellm_manifest *manifest,
                               ellm_error *error) {
    *manifest = (ellm_manifest){0};
    ellm_region tree;
    ellm_region_init(&tree, (size_t)256 << 20);
    ellm_json *root;
    ellm_status status = ellm_json_read(text, n_bytes, &tree, ELLM_BUNDLE_FORMAT, "manifest.json", &root, error);
    int64_t format;
    if (status == ELLM_OK && !ellm_json_int(ellm_json_get(root, "format"), 0, INT64_MAX, &format)) {
        status = bad(error, "format", "", "a whole number");
    }
    if (status == ELLM_OK && format != ELLM_FORMAT_VERSION) {
        status = ellm_fail(error, ELLM_BUNDLE_VERSION,
                           "manifest.json: bundle format %lld, this runtime reads %d; compile the bundle again, or "
                           "deploy it with its own runtime",
                           (long long)format, ELLM_FORMAT_VERSION);
    }
    if (status == ELLM_OK) {
        status = read_fields(root, region, manifest, error);
    }
    const ellm_json *device = status == ELLM_OK ? ellm_json_get(ellm_json_get(root, "target"), "device") : NULL;
    const bool both = ellm_json_equals(device, "both");
    manifest->is_split = ellm_json_equals(device, "split");
    manifest->has_gpu = both || manifest->is_split || ellm_json_equals(device, "vulkan");
    manifest->has_cpu = both || ellm_json_equals(device, "cpu");
    if (status == ELLM_OK && !manifest->has_gpu && !manifest->has_cpu) {
        status = bad(error, "target", "device", "\"cpu\", \"vulkan\", \"both\" or \"split\"");
    }
    const ellm_json *slower = status == ELLM_OK ? ellm_json_get(ellm_json_get(root, "vulkan"), "times_slower") : NULL;
    if (slower != NULL && !(ellm_json_real(slower, &manifest->times_slower) && manifest->times_slower >= 1)) {
        status = bad(error, "vulkan", "times_slower", "a number of at least 1");
    }
    if (status == ELLM_OK) {
        status = read_features(root, region, manifest, error);
    }
    if (status == ELLM_OK) {
        status = read_files(root, region, manifest, error);
    }
    if (status == ELLM_OK) {
        status = read_generation(root, region, manifest, error);
    }
    if (status == ELLM_OK) {
        status = read_prefix(root, region, manifest, error);
    }
    const ellm_json *provenance = status == ELLM_OK ? ellm_json_get(root, "provenance") : NULL;
    if (status == ELLM_OK && (provenance == NULL || provenance->kind != ELLM_JSON_OBJECT)) {
        status = bad(error, "provenance", "", "an object");
    }
    ellm_region_free(&tree);
    return status;
}
