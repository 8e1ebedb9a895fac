#include "safetensors.h"

#include <string.h>

#include "error.h"
#include "json.h"

enum { data_alignment = 65536, tensor_alignment = 64, header_limit = 64 << 20, tree_limit = 256 << 20 };

/* Bytes of an element, 0 for an unknown dtype. */
static uint64_t dtype_bytes(const ellm_json *dtype) {
    static const struct {
        char name[5];
        uint8_t bytes;
    } dtypes[] = {{"F32", 4},  {"F16", 2}, {"U8", 1},  {"I8", 1}, {"I32", 4},
                  {"BF16", 2}, {"F64", 8}, {"I16", 2}, {"I64", 8}};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (ellm_json_equals(dtype, dtypes[i].name)) {
            return dtypes[i].bytes;
        }
    }
    return 0;
}

/* The reason why a tensor's entry is wrong, or NULL and its extent. `at`: where the tensor before it ends. */
static const char *check_tensor(const ellm_json *entry, uint64_t at, uint64_t data_bytes, uint64_t *end) {
    const ellm_json *offsets = ellm_json_get(entry, "data_offsets"), *shape = ellm_json_get(entry, "shape");
    int64_t first, last;
    if (offsets == NULL || offsets->kind != ELLM_JSON_ARRAY || offsets->count != 2
        || !ellm_json_int(offsets->first, 0, INT64_MAX, &first)
        || !ellm_json_int(offsets->first->next, first, INT64_MAX, &last)) {
        return "data_offsets are not two ascending offsets";
    }
    if ((uint64_t)last > data_bytes) {
        return "it ends behind the file";
    }
    if ((uint64_t)first != at) {
        return "it does not start where the tensor before it ends";
    }
    uint64_t bytes = dtype_bytes(ellm_json_get(entry, "dtype"));
    if (bytes == 0) {
        return "its dtype is unknown";
    }
    if (shape == NULL || shape->kind != ELLM_JSON_ARRAY || shape->count > 8) {
        return "its shape is no list of at most 8 extents";
    }
    for (const ellm_json *extent = shape->first; extent != NULL; extent = extent->next) {
        int64_t value;
        if (!ellm_json_int(extent, 0, INT64_MAX, &value) || __builtin_mul_overflow(bytes, (uint64_t)value, &bytes)) {
            return "its shape holds a bad extent";
        }
    }
    if (bytes != (uint64_t)(last - first)) {
        return "its shape and dtype do not make its size";
    }
    *end = (uint64_t)last;
    if (strncmp(entry->key, "__pad.", 6) == 0) {
        return ellm_json_equals(ellm_json_get(entry, "dtype"), "U8") ? NULL : "padding is not U8";
    }
    return at % tensor_alignment == 0 ? NULL : "it does not start at a multiple of 64";
}

static ellm_status read_entries(const ellm_json *header, const uint8_t *data, uint64_t data_bytes, const char *path,
                                ellm_region *region, ellm_tensor **tensors, size_t *n_tensors, ellm_error *error) {
    *n_tensors = 0;
    *tensors = ellm_region_alloc(region, header->count, sizeof **tensors);
    if (*tensors == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "%s: no memory for its list of tensors", path);
    }
    uint64_t at = 0;
    for (const ellm_json *entry = header->first; entry != NULL; entry = entry->next) {
        if (strcmp(entry->key, "__metadata__") == 0) {
            const ellm_json *text = entry->kind == ELLM_JSON_OBJECT ? entry->first : entry;
            for (; text != NULL; text = text->next) {
                if (text->kind != ELLM_JSON_STRING) {
                    return ellm_fail(error, ELLM_BUNDLE_FORMAT, "%s: __metadata__ is no object of strings", path);
                }
            }
            continue;
        }
        uint64_t begin = at;
        const char *wrong = check_tensor(entry, begin, data_bytes, &at);
        if (wrong != NULL) {
            return ellm_fail(error, ELLM_BUNDLE_FORMAT, "%s: tensor %.100s: %s", path, entry->key, wrong);
        }
        if (strncmp(entry->key, "__pad.", 6) != 0) {
            ellm_tensor *tensor = &(*tensors)[(*n_tensors)++];
            tensor->name = ellm_region_text(region, entry->key, strlen(entry->key));
            tensor->data = data + begin;
            tensor->bytes = at - begin;
            if (tensor->name == NULL) {
                return ellm_fail(error, ELLM_NO_MEMORY, "%s: no memory for its list of tensors", path);
            }
        }
    }
    if (at != data_bytes || at % tensor_alignment != 0) {
        return ellm_fail(error, ELLM_BUNDLE_FORMAT,
                         "%s: its tensors end at byte %llu of %llu, which must be equal and a multiple of 64", path,
                         (unsigned long long)at, (unsigned long long)data_bytes);
    }
    return ELLM_OK;
}

size_t ellm_safetensors_head_bytes(const uint8_t *head, size_t n_bytes) {
    uint64_t length = 0;
    for (size_t i = 0; i < 8 && n_bytes >= 8; i++) {
        length |= (uint64_t)head[i] << 8 * i;
    }
    return n_bytes < 8 || length > n_bytes - 8 || length > header_limit ? 0 : (size_t)length + 8;
}

ellm_status ellm_safetensors_read(const uint8_t *head, const uint8_t *data, size_t n_bytes, const char *path,
                                  ellm_region *region, ellm_tensor **tensors, size_t *n_tensors, ellm_error *error) {
    size_t data_start = ellm_safetensors_head_bytes(head, n_bytes);
    if (data_start == 0) {
        return ellm_fail(error, ELLM_BUNDLE_FORMAT, "%s: its safetensors header does not fit the file", path);
    }
    if (data_start % data_alignment != 0) {
        return ellm_fail(error, ELLM_BUNDLE_FORMAT, "%s: its data starts at byte %zu, which is no multiple of 65536",
                         path, data_start);
    }
    static const char blank[] = "                                                                "; /* 64 */
    size_t used = data_start - 8; /* most of a header is padding */
    while (used > sizeof blank && memcmp(head + 8 + used - (sizeof blank - 1), blank, sizeof blank - 1) == 0) {
        used -= sizeof blank - 1;
    }
    ellm_region tree;
    ellm_region_init(&tree, tree_limit);
    ellm_json *header;
    ellm_status status = ellm_json_read((const char *)head + 8, used, &tree, ELLM_BUNDLE_FORMAT, path, &header, error);
    if (status == ELLM_OK && header->kind != ELLM_JSON_OBJECT) {
        status = ellm_fail(error, ELLM_BUNDLE_FORMAT, "%s: its safetensors header is no object", path);
    }
    if (status == ELLM_OK) {
        status = read_entries(header, data + data_start, n_bytes - data_start, path, region, tensors, n_tensors, error);
    }
    ellm_region_free(&tree);
    return status;
}
