/* Opening chat.bin and rendering with it. */
#include "template.h"

#include <stdlib.h>
#include <string.h>

#include "template_eval.h"
#include "template_parts.h"
#include "utf8.h"

enum { WORDS, STRINGS, VARIABLES, UPPER, LOWER, TEXT, N_SECTIONS };
enum { header_bytes = 24, most_steps = 20 * 1000 * 1000, most_memory = 64 << 20 };

/* Operands by kind. e expression, o expression or none, b statement, c statement or none, s string, v any word,
 * f/t/m/u/q filter, test, method, function, comparison; a capital letter repeats what follows it to the end. */
static const char *const shapes[N_OPS] = {
    [OP_NONE] = "",
    [OP_TRUE] = "",
    [OP_FALSE] = "",
    [OP_INT] = "vv",
    [OP_FLOAT] = "vv",
    [OP_STRING] = "s",
    [OP_NAME] = "s",
    [OP_LIST] = "Re",
    [OP_TUPLE] = "Re",
    [OP_DICT] = "Ree",
    [OP_ATTRIBUTE] = "es",
    [OP_ITEM] = "ee",
    [OP_SLICE] = "eooo",
    [OP_AND] = "ee",
    [OP_OR] = "ee",
    [OP_NOT] = "e",
    [OP_NEGATIVE] = "e",
    [OP_POSITIVE] = "e",
    [OP_ADD] = "ee",
    [OP_SUBTRACT] = "ee",
    [OP_MULTIPLY] = "ee",
    [OP_DIVIDE] = "ee",
    [OP_FLOOR_DIVIDE] = "ee",
    [OP_MODULO] = "ee",
    [OP_POWER] = "ee",
    [OP_CONCATENATE] = "Re",
    [OP_COMPARE] = "eRqe",
    [OP_CHOOSE] = "eeo",
    [OP_FILTER] = "feRne",
    [OP_TEST] = "teRne",
    [OP_METHOD] = "meRne",
    [OP_CALL] = "eRne",
    [OP_FUNCTION] = "uRne",
    [OP_CAPTURE] = "b",
    [OP_TEXT] = "s",
    [OP_PRINT] = "e",
    [OP_IF] = "ebc",
    [OP_FOR] = "eobcvsRs",
    [OP_SET] = "se",
    [OP_UNPACK] = "eRs",
    [OP_SET_ATTRIBUTE] = "sse",
    [OP_MACRO] = "sbRso",
    [OP_SCOPE] = "b",
    [OP_BREAK] = "",
    [OP_CONTINUE] = "",
    [OP_BLOCK] = "Rb",
};

typedef struct reader {
    ellm_template *t;
    uint8_t *starts; /* bit set: where nodes start */
    ellm_error *error;
} reader;

static ellm_status bad(ellm_error *error, const char *what) {
    return ellm_fail(error, ELLM_TEMPLATE_INVALID, "chat.bin: %s; compile the bundle again", what);
}

static bool refers(const reader *r, uint32_t at, uint32_t target, bool statement) {
    if (target >= at || (r->starts[target / 8] >> (target % 8) & 1) == 0) {
        return false;
    }
    return ((r->t->words[target] & 0xFF) >= OP_TEXT) == statement;
}

static bool operand_ok(const reader *r, uint32_t at, char shape, uint32_t word) {
    switch (shape) {
    case 'e': return refers(r, at, word, false);
    case 'o': return word == NO_NODE || refers(r, at, word, false);
    case 'b': return refers(r, at, word, true);
    case 'c': return word == NO_NODE || refers(r, at, word, true);
    case 's': return word < r->t->n_strings;
    case 'n': return word == NO_NODE || word < r->t->n_strings;
    case 'f': return word < N_FILTERS;
    case 't': return word < N_TESTS;
    case 'm': return word < N_METHODS;
    case 'u': return word < N_FUNCTIONS;
    case 'q': return word < N_COMPARISONS;
    default: return true;
    }
}

static bool node_ok(const reader *r, uint32_t at, uint32_t op, uint32_t n) {
    const char *shape = shapes[op], *repeat = NULL;
    const uint32_t *operands = r->t->words + at + 2;
    uint32_t i = 0, repeats = 0;
    for (;; shape++) {
        if (*shape == 'R') {
            repeat = shape + 1;
            shape++;
        }
        if (*shape == 0) {
            if (repeat == NULL || i == n) {
                break;
            }
            shape = repeat;
        }
        if (repeat != NULL && shape == repeat) {
            if (i == n) {
                break;
            }
            repeats++;
        }
        if (i >= n || !operand_ok(r, at, *shape, operands[i])) {
            return false;
        }
        i++;
    }
    bool call = (op >= OP_FILTER && op <= OP_FUNCTION) || op == OP_MACRO;
    bool targets = op != OP_FOR || n == 6 || operands[4] != 0;
    return i == n && targets && (!call || repeats <= most_arguments);
}

static ellm_status check_nodes(reader *r, uint32_t root) {
    const ellm_template *t = r->t;
    for (uint32_t at = 0; at < t->n_words;) {
        uint32_t op = t->words[at] & 0xFF, n = t->words[at] >> 8;
        if (t->n_words - at < 2 || n > t->n_words - at - 2 || op == OP_INVALID || op >= N_OPS) {
            return bad(r->error, "an unknown node");
        }
        if (!node_ok(r, at, op, n)) {
            return bad(r->error, "a node refers to something that does not exist");
        }
        r->starts[at / 8] |= (uint8_t)(1u << (at % 8));
        at += 2 + n;
    }
    return refers(r, (uint32_t)t->n_words, root, true) ? ELLM_OK : bad(r->error, "no root");
}

static bool map_ok(const uint32_t *map, size_t n) {
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < 4; j++) {
            uint32_t point = map[4 * i + j];
            if (point > 0x10FFFF || point - 0xD800 < 0x800) {
                return false;
            }
        }
        if (i > 0 && map[4 * i] <= map[4 * i - 4]) {
            return false;
        }
    }
    return true;
}

static ellm_status check(reader *r, size_t text_bytes, uint32_t root) {
    ellm_template *t = r->t;
    for (size_t i = 0; i < t->n_strings; i++) {
        const slice *s = &t->strings[i];
        if (s->offset > text_bytes || s->bytes > text_bytes - s->offset
            || !ellm_utf8_valid((const uint8_t *)t->text + s->offset, s->bytes)) {
            return bad(r->error, "a string is malformed");
        }
    }
    for (size_t i = 0; i < 2 * t->n_variables; i++) {
        if (t->variables[i] >= t->n_strings) {
            return bad(r->error, "a variable refers to a string that does not exist");
        }
    }
    if (!map_ok(t->upper, t->n_upper) || !map_ok(t->lower, t->n_lower)) {
        return bad(r->error, "a case table is malformed");
    }
    return check_nodes(r, root);
}

ellm_status ellm_template_open(const uint8_t *data, size_t bytes, ellm_template **opened, ellm_error *error) {
    static const uint8_t record_bytes[N_SECTIONS] = {4, 8, 8, 16, 16, 1};
    const uint32_t *header = (const uint32_t *)(const void *)data;
    const void *section[N_SECTIONS];
    size_t count[N_SECTIONS];
    *opened = NULL;
    if (((uintptr_t)data & 7) != 0) {
        return ellm_fail(error, ELLM_INTERNAL, "chat.bin: not aligned to 8 bytes in memory");
    }
    if (bytes < header_bytes + 8 * N_SECTIONS || memcmp(data, "ELLMCHT1", 8) != 0 || header[2] != bytes) {
        return bad(error, "no template, or of the wrong size");
    }
    if (header[3] != 1) {
        return ellm_fail(error, ELLM_BUNDLE_VERSION, "chat.bin: version %u, this runtime reads version 1",
                         (unsigned)header[3]);
    }
    for (size_t i = 0; i < N_SECTIONS; i++) {
        uint32_t offset = header[6 + 2 * i], size = header[7 + 2 * i];
        if (offset % 8 != 0 || offset > bytes || size > bytes - offset || size % record_bytes[i] != 0) {
            return bad(error, "a section lies outside the file");
        }
        section[i] = data + offset;
        count[i] = size / record_bytes[i];
    }
    ellm_template *t = malloc(sizeof *t);
    uint8_t *starts = calloc(1, count[WORDS] / 8 + 1);
    ellm_status status = ELLM_NO_MEMORY;
    if (t != NULL && starts != NULL) {
        *t = (ellm_template){section[WORDS],   section[VARIABLES], section[UPPER], section[LOWER],
                             section[STRINGS], section[TEXT],      count[WORDS],   count[STRINGS],
                             count[VARIABLES], count[UPPER],       count[LOWER],   header[4]};
        reader r = {t, starts, error};
        status = check(&r, count[TEXT], t->root);
    }
    free(starts);
    if (status != ELLM_OK) {
        free(t);
        return status;
    }
    *opened = t;
    return ELLM_OK;
}

void ellm_template_close(ellm_template *opened) {
    free(opened);
}

static void set_by_name(machine *vm, const char *name, value v) {
    size_t n = strlen(name);
    for (uint32_t i = 0; i < vm->t->n_strings; i++) {
        const slice *s = &vm->t->strings[i];
        if (s->bytes == n && memcmp(vm->t->text + s->offset, name, n) == 0) {
            ellm_vm_set(vm, i, v);
            return;
        }
    }
}

static ellm_status set_variables(machine *vm, const char *messages_json, const char *extra_json, bool prompt) {
    const ellm_template *t = vm->t;
    ellm_json *messages = NULL, *extra = NULL;
    ellm_status status =
        ellm_json_read(messages_json, strlen(messages_json), &vm->region, ELLM_USAGE, "messages", &messages, vm->error);
    if (status == ELLM_OK && extra_json != NULL) {
        status = ellm_json_read(extra_json, strlen(extra_json), &vm->region, ELLM_USAGE, "template variables", &extra,
                                vm->error);
    }
    if (status != ELLM_OK) {
        return status;
    }
    if (messages->kind != ELLM_JSON_ARRAY || (extra != NULL && extra->kind != ELLM_JSON_OBJECT)) {
        return ellm_fail(vm->error, ELLM_USAGE, "messages must be a JSON array, further variables a JSON object");
    }
    for (size_t i = 0; i < t->n_variables; i++) {
        const slice *text = &t->strings[t->variables[2 * i + 1]];
        ellm_vm_set(vm, t->variables[2 * i], ellm_vm_borrow(t->text + text->offset, text->bytes));
    }
    set_by_name(vm, "messages", ellm_vm_from_json(vm, messages));
    set_by_name(vm, "add_generation_prompt", ellm_vm_boolean(prompt));
    /* transformers always passes these two. */
    set_by_name(vm, "tools", (value){.kind = NONE});
    set_by_name(vm, "documents", (value){.kind = NONE});
    for (const ellm_json *item = extra != NULL ? extra->first : NULL; item != NULL; item = item->next) {
        set_by_name(vm, item->key, ellm_vm_from_json(vm, item));
    }
    return vm->status;
}

ellm_status ellm_template_render(const ellm_template *t, const char *messages_json, const char *extra_json,
                                 bool add_generation_prompt, char *text, size_t cap, size_t *n_bytes,
                                 ellm_error *error) {
    text_buffer out = {0};
    frame globals = {0};
    machine vm = {.t = t, .error = error, .steps = most_steps, .frame = &globals, .out = &out};
    *n_bytes = 0;
    ellm_region_init(&vm.region, most_memory);
    ellm_status status = set_variables(&vm, messages_json, extra_json, add_generation_prompt);
    if (status == ELLM_OK) {
        ellm_vm_run(&vm, t->root);
        status = vm.status;
    }
    if (status == ELLM_OK) {
        *n_bytes = out.n;
        if (out.n != 0) {
            memcpy(text, out.data, out.n < cap ? out.n : cap);
        }
        status = out.n > cap ? ELLM_BUFFER_SMALL : ELLM_OK;
    }
    free(out.data);
    ellm_region_free(&vm.region);
    return status;
}
