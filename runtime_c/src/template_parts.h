/* template_parts.h: values and machine of the template interpreter. */
#ifndef ELLM_TEMPLATE_PARTS_H
#define ELLM_TEMPLATE_PARTS_H

#include "error.h"
#include "json.h"
#include "region.h"
#include "template.h"

#define NO_NODE 0xFFFFFFFFu

/* The order of these lists is the format; crosscompile/template.py has the same. */
enum {
    OP_INVALID,
    OP_NONE,
    OP_TRUE,
    OP_FALSE,
    OP_INT,
    OP_FLOAT,
    OP_STRING,
    OP_NAME,
    OP_LIST,
    OP_TUPLE,
    OP_DICT,
    OP_ATTRIBUTE,
    OP_ITEM,
    OP_SLICE,
    OP_AND,
    OP_OR,
    OP_NOT,
    OP_NEGATIVE,
    OP_POSITIVE,
    OP_ADD,
    OP_SUBTRACT,
    OP_MULTIPLY,
    OP_DIVIDE,
    OP_FLOOR_DIVIDE,
    OP_MODULO,
    OP_POWER,
    OP_CONCATENATE,
    OP_COMPARE,
    OP_CHOOSE,
    OP_FILTER,
    OP_TEST,
    OP_METHOD,
    OP_CALL,
    OP_FUNCTION,
    OP_CAPTURE,
    OP_TEXT,
    OP_PRINT,
    OP_IF,
    OP_FOR,
    OP_SET,
    OP_UNPACK,
    OP_SET_ATTRIBUTE,
    OP_MACRO,
    OP_SCOPE,
    OP_BREAK,
    OP_CONTINUE,
    OP_BLOCK,
    N_OPS
};
enum {
    FILTER_TRIM,
    FILTER_TOJSON,
    FILTER_LENGTH,
    FILTER_UPPER,
    FILTER_LOWER,
    FILTER_TITLE,
    FILTER_CAPITALIZE,
    FILTER_JOIN,
    FILTER_DEFAULT,
    FILTER_FIRST,
    FILTER_LAST,
    FILTER_LIST,
    FILTER_ITEMS,
    FILTER_MAP_ATTRIBUTE,
    FILTER_MAP,
    FILTER_SELECT,
    FILTER_REJECT,
    FILTER_SELECTATTR,
    FILTER_REJECTATTR,
    FILTER_STRING,
    FILTER_SAFE,
    FILTER_INT,
    FILTER_FLOAT,
    FILTER_REPLACE,
    FILTER_REVERSE,
    FILTER_ABS,
    FILTER_INDENT,
    FILTER_UNIQUE,
    FILTER_SORT,
    FILTER_DICTSORT,
    FILTER_SUM,
    FILTER_MIN,
    FILTER_MAX,
    N_FILTERS
};
enum {
    TEST_DEFINED,
    TEST_UNDEFINED,
    TEST_STRING,
    TEST_MAPPING,
    TEST_ITERABLE,
    TEST_SEQUENCE,
    TEST_NONE,
    TEST_NUMBER,
    TEST_INTEGER,
    TEST_FLOAT,
    TEST_BOOLEAN,
    TEST_TRUE,
    TEST_FALSE,
    TEST_ODD,
    TEST_EVEN,
    TEST_DIVISIBLEBY,
    TEST_EQ,
    TEST_NE,
    TEST_LT,
    TEST_LE,
    TEST_GT,
    TEST_GE,
    TEST_IN,
    TEST_CALLABLE,
    N_TESTS
};
enum {
    METHOD_STRIP,
    METHOD_LSTRIP,
    METHOD_RSTRIP,
    METHOD_SPLIT,
    METHOD_RSPLIT,
    METHOD_STARTSWITH,
    METHOD_ENDSWITH,
    METHOD_REPLACE,
    METHOD_UPPER,
    METHOD_LOWER,
    METHOD_TITLE,
    METHOD_CAPITALIZE,
    METHOD_FIND,
    METHOD_COUNT,
    METHOD_ITEMS,
    METHOD_KEYS,
    METHOD_VALUES,
    METHOD_GET,
    METHOD_JOIN,
    METHOD_SPLITLINES,
    METHOD_CYCLE,
    METHOD_INDEX,
    METHOD_REMOVEPREFIX,
    METHOD_REMOVESUFFIX,
    METHOD_ISDIGIT,
    METHOD_COPY,
    N_METHODS
};
/* str.title(), which is not Jinja's filter of that name. */
enum { CASE_TITLE_METHOD = N_FILTERS };
enum { CALL_RAISE_EXCEPTION, CALL_STRFTIME_NOW, CALL_NAMESPACE, CALL_RANGE, CALL_DICT, N_FUNCTIONS };
enum { IS_EQ, IS_NE, IS_LT, IS_LE, IS_GT, IS_GE, IS_IN, IS_NOT_IN, N_COMPARISONS };
enum { most_arguments = 16, most_depth = 160, most_value_depth = 100 };

typedef struct slice {
    uint32_t offset, bytes;
} slice;

struct ellm_template {
    const uint32_t *words, *variables, *upper, *lower;
    const slice *strings;
    const char *text;
    size_t n_words, n_strings, n_variables, n_upper, n_lower;
    uint32_t root;
};

typedef enum kind {
    UNDEFINED,
    NONE,
    BOOLEAN,
    INTEGER,
    REAL,
    STRING,
    LIST,
    TUPLE,
    DICT,
    NAMESPACE,
    MACRO,
    LOOP,
    BUILTIN
} kind;

typedef struct value value;
typedef struct list list;
typedef struct dict dict;

struct value {
    kind kind;
    uint32_t bytes; /* STRING: its length */
    union {
        int64_t i; /* BOOLEAN, INTEGER */
        double d;
        const char *s; /* STRING, not NUL-terminated; UNDEFINED: name or NULL */
        const list *list;
        dict *dict; /* DICT, NAMESPACE */
        const struct macro *macro;
        const struct loop *loop;
    };
};

struct list {
    size_t n;
    value items[];
};

struct dict {
    size_t n, cap;
    value *pairs; /* key, value, key, value, … in the order of insertion */
};

typedef struct variable {
    uint32_t name;
    value value;
    struct variable *next;
} variable;

typedef struct frame {
    struct frame *outer;
    variable *variables;
} frame;

typedef struct macro {
    const uint32_t *node;
    frame *outer;
} macro;

typedef struct loop {
    size_t index;
    const list *items;
} loop;

typedef struct text_buffer {
    char *data;
    size_t n, cap;
} text_buffer;

typedef struct machine {
    const ellm_template *t;
    ellm_region region;
    ellm_status status;
    ellm_error *error;
    uint64_t steps; /* left */
    unsigned depth;
    uint32_t line;
    frame *frame;
    text_buffer *out;
    uint32_t flow; /* OP_BREAK or OP_CONTINUE while leaving a loop's body, else 0 */
} machine;

typedef struct arguments {
    unsigned n;
    uint32_t names[most_arguments]; /* string index or NO_NODE */
    value values[most_arguments];
} arguments;

/* The first failure counts; returns undefined. */
value ellm_vm_fail(machine *vm, const char *format, ...) ELLM_PRINTF(2, 3);
value ellm_vm_limit(machine *vm);
bool ellm_vm_spend(machine *vm, size_t steps);
void *ellm_vm_alloc(machine *vm, size_t n, size_t bytes);

/* Values (template_value.c). */
value ellm_vm_string(machine *vm, const char *text, size_t n); /* copies */
value ellm_vm_borrow(const char *text, size_t n);              /* does not */
value ellm_vm_boolean(bool truth);
value ellm_vm_integer(int64_t number);
list *ellm_vm_list(machine *vm, size_t n);
value ellm_vm_from_json(machine *vm, const ellm_json *json);
bool ellm_vm_truth(const value *v);
bool ellm_vm_equal(machine *vm, const value *a, const value *b, unsigned depth);
/* -1, 0, 1; fails if the two have no order. */
int ellm_vm_compare(machine *vm, const value *a, const value *b);
bool ellm_vm_contains(machine *vm, const value *item, const value *container);
const value *ellm_vm_get(machine *vm, const dict *d, const value *key);
void ellm_vm_put(machine *vm, dict *d, value key, value item);
dict *ellm_vm_dict(machine *vm, size_t cap);
bool ellm_vm_is(const value *v, const char *text); /* a string equal to text */
/* The elements of anything that can be iterated; fails otherwise. */
const list *ellm_vm_iterate(machine *vm, const value *v);
size_t ellm_vm_length(machine *vm, const value *v);
size_t ellm_vm_points(const value *string); /* characters of a string */
value ellm_vm_item(machine *vm, const value *v, const value *key);
value ellm_vm_attribute(machine *vm, const value *v, const value *name);
value ellm_vm_slice(machine *vm, const value *v, const value bounds[3]);
value ellm_vm_arithmetic(machine *vm, uint32_t op, const value *a, const value *b);

/* Text (template_text.c). */
void ellm_vm_write(machine *vm, text_buffer *to, const char *text, size_t n);
void ellm_vm_print(machine *vm, text_buffer *to, const value *v); /* str(v) */
value ellm_vm_str(machine *vm, const value *v);
value ellm_vm_take(machine *vm, text_buffer *from); /* the buffer's text as a value; frees the buffer */
void ellm_vm_tojson(machine *vm, text_buffer *to, const value *v, int64_t indent, bool ensure_ascii, bool sort_keys);
value ellm_vm_strip(machine *vm, const value *v, const value *characters, bool left, bool right);
value ellm_vm_case(machine *vm, uint32_t filter, const value *v);
value ellm_vm_replace(machine *vm, const value *v, const value *old, const value *new, int64_t count);
value ellm_vm_split(machine *vm, const value *v, const value *separator, int64_t most, bool from_right);
size_t ellm_vm_find(const value *text, size_t from, const value *part); /* SIZE_MAX: not there */
bool ellm_vm_is_space(uint32_t point);

/* Filters, tests, methods, functions (template_call.c). */
value ellm_vm_filter(machine *vm, uint32_t id, const value *v, const arguments *args);
bool ellm_vm_test(machine *vm, uint32_t id, const value *v, const arguments *args);
value ellm_vm_method(machine *vm, uint32_t id, const value *v, const arguments *args);
value ellm_vm_function(machine *vm, uint32_t id, const arguments *args);

#endif
