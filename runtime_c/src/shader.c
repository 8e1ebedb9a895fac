#include "shader.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

enum {
    head_bytes = 16,
    entry_bytes = 16,
    most_shaders = 65536,
    most_name = 512,
    module_head_words = 5,
    most_local = 1024,
};
static const char magic[] = "ELLMSPV1";
static const uint32_t spirv_magic = 0x07230203, most_version = 0x00010300;

/* Opcodes and operands of the SPIR-V specification. */
enum { op_entry_point = 15, op_execution_mode = 16, op_capability = 17, op_function = 54, op_decorate = 71 };
enum { model_compute = 5, mode_local_size = 17, decoration_binding = 33, decoration_set = 34 };

static const struct {
    uint16_t number, needs;
} capabilities[] = {
    {1, 0},                 /* Shader */
    {9, ELLM_NEEDS_MATRIX}, /* Float16 */
    {61, ELLM_NEEDS_GROUP},
    {63, ELLM_NEEDS_GROUP | ELLM_NEEDS_SUMS},
    {4433, ELLM_NEEDS_16BIT},
    {4448, ELLM_NEEDS_8BIT},
    {5345, ELLM_NEEDS_MATRIX}, /* VulkanMemoryModel */
    {6018, ELLM_NEEDS_DOT},
    {6019, ELLM_NEEDS_DOT},
    {6022, ELLM_NEEDS_MATRIX},
};

static ellm_status bad(ellm_error *error, const char *name, const char *reason) {
    return ellm_fail(error, ELLM_KERNEL_INVALID, "kernels.spv: %s%.100s: %s; compile the bundle again",
                     *name != '\0' ? "kernel " : "its table", name, reason);
}

static uint32_t word_at(const uint8_t *data) {
    uint32_t word;
    memcpy(&word, data, sizeof word);
    return word;
}

static const char *take_capability(ellm_shader *shader, uint32_t number) {
    for (size_t i = 0; i < sizeof capabilities / sizeof *capabilities; i++) {
        if (capabilities[i].number == number) {
            shader->needs |= capabilities[i].needs;
            return NULL;
        }
    }
    return "it asks for what no kernel needs";
}

static const char *take_local(ellm_shader *shader, const uint32_t *operands) {
    uint64_t total = 1;
    for (int i = 0; i < 3; i++) {
        shader->local[i] = operands[i];
        total = operands[i] == 0 || operands[i] > most_local ? 0 : total * operands[i];
    }
    return total == 0 || total > most_local ? "its workgroup has no possible size" : NULL;
}

/* One instruction before the first function. Returns what is wrong with it, or NULL. */
static const char *take(ellm_shader *shader, uint32_t opcode, const uint32_t *operands, uint32_t n, uint32_t *entries) {
    switch (opcode) {
    case op_capability: return n == 1 ? take_capability(shader, operands[0]) : "an instruction is malformed";
    case op_entry_point:
        /* the name "main" and its end are two words */
        if (n < 4 || operands[0] != model_compute || memcmp(&operands[2], "main\0\0\0", 8) != 0) {
            return "its entry point is not main, for computing";
        }
        ++*entries;
        return NULL;
    case op_execution_mode: return n >= 5 && operands[1] == mode_local_size ? take_local(shader, operands + 2) : NULL;
    case op_decorate:
        if (n == 3 && operands[1] == decoration_set && operands[2] != 0) {
            return "it has buffers outside of set 0";
        }
        if (n == 3 && operands[1] == decoration_binding) {
            if (operands[2] >= 64) {
                return "it has too many buffers";
            }
            shader->n_bindings = operands[2] >= shader->n_bindings ? operands[2] + 1 : shader->n_bindings;
        }
        return NULL;
    default: return NULL;
    }
}

static const char *check_module(ellm_shader *shader, uint32_t matrices) {
    size_t n_words = shader->n_bytes / 4;
    const uint32_t *code = shader->code;
    if (n_words < module_head_words || code[0] != spirv_magic || code[1] > most_version) {
        return "it is no SPIR-V of version 1.3 or older";
    }
    uint32_t entries = 0;
    bool in_functions = false;
    for (size_t at = module_head_words; at < n_words;) {
        uint32_t length = code[at] >> 16, opcode = code[at] & 0xffff;
        if (length == 0 || length > n_words - at) {
            return "an instruction is malformed";
        }
        in_functions = in_functions || opcode == op_function;
        const char *wrong = in_functions ? NULL : take(shader, opcode, code + at + 1, length - 1, &entries);
        if (wrong != NULL) {
            return wrong;
        }
        at += length;
    }
    shader->needs |= matrices << 16;
    /* subgroups are a power of two, and a workgroup consists of whole ones */
    const uint32_t size = matrices & 255, local = shader->local[0];
    const bool is_odd = (shader->needs & ELLM_NEEDS_MATRIX) != 0 && ((size | local) & (size - 1)) != 0;
    return entries != 1 || local == 0 || is_odd ? "it lacks an entry point or a workgroup's size" : NULL;
}

static ellm_status read_entry(const uint8_t *data, size_t n_bytes, const uint8_t *entry, ellm_region *region,
                              ellm_shader *shader, ellm_error *error) {
    size_t name = word_at(entry), n_name = word_at(entry + 4), code = word_at(entry + 8), size = word_at(entry + 12);
    if (n_name == 0 || n_name > most_name || name > n_bytes || n_name > n_bytes - name || code % 4 != 0 || size % 4 != 0
        || code > n_bytes || size > n_bytes - code) {
        return bad(error, "", "an entry lies outside of the file");
    }
    if (memchr(data + name, '\0', n_name) != NULL) {
        return bad(error, "", "a name has a zero byte");
    }
    shader->name = ellm_region_text(region, (const char *)data + name, n_name);
    if (shader->name == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "kernels.spv: no memory for its names");
    }
    shader->code = (const uint32_t *)(const void *)(data + code); /* mapped files begin at a page */
    shader->n_bytes = size;
    const char *wrong = check_module(shader, word_at(data + 12));
    return wrong != NULL ? bad(error, shader->name, wrong) : ELLM_OK;
}

static int compare(const void *a, const void *b) {
    return strcmp(((const ellm_shader *)a)->name, ((const ellm_shader *)b)->name);
}

ellm_status ellm_shaders_read(const uint8_t *data, size_t n_bytes, ellm_region *region, ellm_shaders *shaders,
                              ellm_error *error) {
    *shaders = (ellm_shaders){0};
    if (n_bytes < head_bytes || memcmp(data, magic, 8) != 0 || word_at(data + 12) >> 16 != 0) {
        return bad(error, "", "it does not begin as such a file does");
    }
    uint32_t n = word_at(data + 8);
    if (n == 0 || n > most_shaders || (n_bytes - head_bytes) / entry_bytes < n) {
        return bad(error, "", "it is shorter than its table");
    }
    shaders->all = ellm_region_alloc(region, n, sizeof *shaders->all);
    if (shaders->all == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "kernels.spv: no memory for its table");
    }
    for (uint32_t i = 0; i < n; i++) {
        ellm_status status =
            read_entry(data, n_bytes, data + head_bytes + (size_t)i * entry_bytes, region, &shaders->all[i], error);
        if (status != ELLM_OK) {
            return status;
        }
    }
    shaders->n = n;
    qsort(shaders->all, n, sizeof *shaders->all, compare);
    for (uint32_t i = 1; i < n; i++) {
        if (strcmp(shaders->all[i - 1].name, shaders->all[i].name) == 0) {
            return bad(error, shaders->all[i].name, "it is there twice");
        }
    }
    return ELLM_OK;
}

const ellm_shader *ellm_shaders_find(const ellm_shaders *shaders, const char *name) {
    ellm_shader key = {.name = name};
    return shaders->n == 0 ? NULL : bsearch(&key, shaders->all, shaders->n, sizeof key, compare);
}
