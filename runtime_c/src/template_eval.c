/* The interpreter: expressions give values, statements write text. Recursion is bounded by most_depth. */
#include "template_eval.h"

#include <string.h>

static value evaluate(machine *vm, uint32_t node);

static value string_of(const machine *vm, uint32_t index) {
    const slice *s = &vm->t->strings[index];
    return ellm_vm_borrow(vm->t->text + s->offset, s->bytes);
}

static value *find(frame *from, uint32_t name) {
    for (frame *f = from; f != NULL; f = f->outer) {
        for (variable *v = f->variables; v != NULL; v = v->next) {
            if (v->name == name) {
                return &v->value;
            }
        }
    }
    return NULL;
}

void ellm_vm_set(machine *vm, uint32_t name, value v) {
    frame own = {.variables = vm->frame->variables};
    value *old = find(&own, name);
    if (old != NULL) {
        *old = v;
        return;
    }
    variable *made = ellm_vm_alloc(vm, 1, sizeof *made);
    if (made != NULL) {
        *made = (variable){name, v, vm->frame->variables};
        vm->frame->variables = made;
    }
}

static bool enter(machine *vm, frame *outer) {
    frame *inner = ellm_vm_alloc(vm, 1, sizeof *inner);
    if (inner != NULL) {
        *inner = (frame){.outer = outer};
        vm->frame = inner;
    }
    return inner != NULL;
}

static void collect(machine *vm, const uint32_t *operands, unsigned n, arguments *args) {
    args->n = n / 2;
    for (unsigned i = 0; i < args->n; i++) {
        args->names[i] = operands[2 * i];
        args->values[i] = evaluate(vm, operands[2 * i + 1]);
    }
}

static value call_macro(machine *vm, const value *callee, const uint32_t *operands, unsigned n) {
    arguments args;
    collect(vm, operands, n, &args);
    if (callee->kind != MACRO) {
        return ellm_vm_fail(vm, "chat template, line %u: only a macro can be called", (unsigned)vm->line);
    }
    const uint32_t *node = callee->macro->node, *parameters = node + 4;
    unsigned n_parameters = ((node[0] >> 8) - 2) / 2, unnamed = 0;
    frame *before = vm->frame;
    text_buffer text = {0}, *out = vm->out;
    if (vm->status != ELLM_OK || !enter(vm, callee->macro->outer)) {
        return (value){.kind = UNDEFINED};
    }
    for (unsigned i = 0; i < n_parameters; i++) {
        ellm_vm_set(vm, parameters[2 * i], (value){.kind = UNDEFINED});
    }
    uint32_t given = 0;
    for (unsigned i = 0; i < args.n; i++) {
        unsigned at = unnamed;
        if (args.names[i] != NO_NODE) {
            for (at = 0; at < n_parameters && parameters[2 * at] != args.names[i]; at++) {
            }
        } else {
            unnamed++;
        }
        if (at >= n_parameters || (given >> at & 1) != 0) {
            ellm_vm_fail(vm, "chat template, line %u: the macro has no such parameter", (unsigned)vm->line);
            break;
        }
        given |= 1u << at;
        ellm_vm_set(vm, parameters[2 * at], args.values[i]);
    }
    for (unsigned i = 0; i < n_parameters && vm->status == ELLM_OK; i++) {
        if ((given >> i & 1) == 0 && parameters[2 * i + 1] != NO_NODE) {
            ellm_vm_set(vm, parameters[2 * i], evaluate(vm, parameters[2 * i + 1]));
        }
    }
    vm->out = &text;
    ellm_vm_run(vm, node[3]);
    vm->out = out;
    vm->frame = before;
    vm->flow = 0;
    return ellm_vm_take(vm, &text);
}

static value compare(machine *vm, const uint32_t *node, unsigned n) {
    value left = evaluate(vm, node[2]);
    for (unsigned i = 1; i + 1 < n && vm->status == ELLM_OK; i += 2) {
        value right = evaluate(vm, node[2 + i + 1]);
        bool holds = false;
        switch (node[2 + i]) {
        case IS_EQ:
        case IS_NE: holds = ellm_vm_equal(vm, &left, &right, 0) == (node[2 + i] == IS_EQ); break;
        case IS_IN:
        case IS_NOT_IN: holds = ellm_vm_contains(vm, &left, &right) == (node[2 + i] == IS_IN); break;
        case IS_LT: holds = ellm_vm_compare(vm, &left, &right) < 0; break;
        case IS_LE: holds = ellm_vm_compare(vm, &left, &right) <= 0; break;
        case IS_GT: holds = ellm_vm_compare(vm, &left, &right) > 0; break;
        default: holds = ellm_vm_compare(vm, &left, &right) >= 0;
        }
        if (!holds) {
            return ellm_vm_boolean(false);
        }
        left = right;
    }
    return ellm_vm_boolean(true);
}

static value sequence(machine *vm, const uint32_t *node, unsigned n) {
    if ((node[0] & 0xFF) == OP_DICT) {
        dict *items = ellm_vm_dict(vm, n / 2);
        for (unsigned i = 0; items != NULL && i < n && vm->status == ELLM_OK; i += 2) {
            value key = evaluate(vm, node[2 + i]);
            ellm_vm_put(vm, items, key, evaluate(vm, node[3 + i]));
        }
        return items != NULL ? (value){.kind = DICT, .dict = items} : (value){.kind = UNDEFINED};
    }
    list *items = ellm_vm_list(vm, n);
    for (unsigned i = 0; items != NULL && i < n; i++) {
        items->items[i] = evaluate(vm, node[2 + i]);
    }
    kind made = (node[0] & 0xFF) == OP_LIST ? LIST : TUPLE;
    return items != NULL ? (value){.kind = made, .list = items} : (value){.kind = UNDEFINED};
}

static value slice_of(machine *vm, const uint32_t *node) {
    value v = evaluate(vm, node[2]), bounds[3];
    for (unsigned i = 0; i < 3; i++) {
        bounds[i] = node[3 + i] != NO_NODE ? evaluate(vm, node[3 + i]) : (value){.kind = NONE};
    }
    return ellm_vm_slice(vm, &v, bounds);
}

static value captured(machine *vm, uint32_t body) {
    text_buffer text = {0}, *out = vm->out;
    frame *before = vm->frame;
    if (!enter(vm, before)) {
        return (value){.kind = UNDEFINED};
    }
    vm->out = &text;
    ellm_vm_run(vm, body);
    vm->out = out;
    vm->frame = before;
    return ellm_vm_take(vm, &text);
}

static value concatenated(machine *vm, const uint32_t *node, unsigned n) {
    text_buffer text = {0};
    for (unsigned i = 0; i < n && vm->status == ELLM_OK; i++) {
        value part = evaluate(vm, node[2 + i]);
        ellm_vm_print(vm, &text, &part);
    }
    return ellm_vm_take(vm, &text);
}

static value number_of(const uint32_t *node) {
    uint64_t bits = node[2] | (uint64_t)node[3] << 32;
    value made = {.kind = (node[0] & 0xFF) == OP_INT ? INTEGER : REAL};
    if (made.kind == INTEGER) {
        memcpy(&made.i, &bits, sizeof bits);
    } else {
        memcpy(&made.d, &bits, sizeof bits);
    }
    return made;
}

static value signed_value(machine *vm, uint32_t op, const value *v) {
    value zero = ellm_vm_integer(0);
    if (v->kind == REAL) {
        return (value){.kind = REAL, .d = op == OP_NEGATIVE ? -v->d : v->d};
    }
    if (v->kind != INTEGER && v->kind != BOOLEAN) {
        return ellm_vm_fail(vm, "chat template, line %u: a sign needs a number", (unsigned)vm->line);
    }
    return ellm_vm_arithmetic(vm, op == OP_NEGATIVE ? OP_SUBTRACT : OP_ADD, &zero, v);
}

/* Calls and filters have their own function so that their 16 arguments are not on every level's stack. */
static value apply(machine *vm, const uint32_t *node, unsigned n) {
    arguments args;
    uint32_t op = node[0] & 0xFF;
    if (op == OP_FUNCTION) {
        collect(vm, node + 3, n - 1, &args);
        vm->line = node[1];
        return vm->status == ELLM_OK ? ellm_vm_function(vm, node[2], &args) : (value){.kind = UNDEFINED};
    }
    value v = evaluate(vm, node[3]);
    collect(vm, node + 4, n - 2, &args);
    vm->line = node[1];
    if (vm->status != ELLM_OK) {
        return v;
    }
    return op == OP_FILTER ? ellm_vm_filter(vm, node[2], &v, &args)
           : op == OP_TEST ? ellm_vm_boolean(ellm_vm_test(vm, node[2], &v, &args))
                           : ellm_vm_method(vm, node[2], &v, &args);
}

static value evaluate_node(machine *vm, const uint32_t *node) {
    uint32_t op = node[0] & 0xFF;
    unsigned n = node[0] >> 8;
    value a, b;
    switch (op) {
    case OP_NONE: return (value){.kind = NONE};
    case OP_TRUE:
    case OP_FALSE: return ellm_vm_boolean(op == OP_TRUE);
    case OP_INT:
    case OP_FLOAT: return number_of(node);
    case OP_STRING: return string_of(vm, node[2]);
    case OP_NAME: {
        const value *found = find(vm->frame, node[2]);
        value name = string_of(vm, node[2]);
        name.kind = UNDEFINED;
        return found != NULL ? *found : name;
    }
    case OP_LIST:
    case OP_TUPLE:
    case OP_DICT: return sequence(vm, node, n);
    case OP_ATTRIBUTE:
        a = evaluate(vm, node[2]);
        b = string_of(vm, node[3]);
        return ellm_vm_attribute(vm, &a, &b);
    case OP_ITEM:
        a = evaluate(vm, node[2]);
        b = evaluate(vm, node[3]);
        return ellm_vm_item(vm, &a, &b);
    case OP_SLICE: return slice_of(vm, node);
    case OP_AND:
    case OP_OR: a = evaluate(vm, node[2]); return ellm_vm_truth(&a) == (op == OP_OR) ? a : evaluate(vm, node[3]);
    case OP_NOT: a = evaluate(vm, node[2]); return ellm_vm_boolean(!ellm_vm_truth(&a));
    case OP_NEGATIVE:
    case OP_POSITIVE: a = evaluate(vm, node[2]); return signed_value(vm, op, &a);
    case OP_CONCATENATE: return concatenated(vm, node, n);
    case OP_COMPARE: return compare(vm, node, n);
    case OP_CHOOSE:
        a = evaluate(vm, node[2]);
        if (ellm_vm_truth(&a)) {
            return evaluate(vm, node[3]);
        }
        return node[4] != NO_NODE ? evaluate(vm, node[4]) : (value){.kind = UNDEFINED};
    case OP_FILTER:
    case OP_TEST:
    case OP_METHOD:
    case OP_FUNCTION: return apply(vm, node, n);
    case OP_CALL: a = evaluate(vm, node[2]); return call_macro(vm, &a, node + 3, n - 1);
    case OP_CAPTURE: return captured(vm, node[2]);
    default: /* arithmetic */
        a = evaluate(vm, node[2]);
        b = evaluate(vm, node[3]);
        return vm->status == ELLM_OK ? ellm_vm_arithmetic(vm, op, &a, &b) : a;
    }
}

static value evaluate(machine *vm, uint32_t index) {
    value result = {.kind = UNDEFINED};
    if (vm->depth >= most_depth || !ellm_vm_spend(vm, 1)) {
        ellm_vm_limit(vm);
    }
    if (vm->status == ELLM_OK) {
        vm->depth++;
        vm->line = vm->t->words[index + 1];
        result = evaluate_node(vm, vm->t->words + index);
        vm->depth--;
    }
    return result;
}

/* ---- statements ---- */

static void unpack(machine *vm, const value *v, const uint32_t *names, unsigned n) {
    const list *items = ellm_vm_iterate(vm, v);
    if (items == NULL || items->n != n) {
        ellm_vm_fail(vm, "chat template, line %u: wrong number of values to unpack", (unsigned)vm->line);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        ellm_vm_set(vm, names[i], items->items[i]);
    }
}

static void bind_targets(machine *vm, const value *item, const uint32_t *node, unsigned n) {
    if (node[6] != 0) {
        unpack(vm, item, node + 7, n - 5);
    } else {
        ellm_vm_set(vm, node[7], *item);
    }
}

/* The items for which the loop's `if` holds. */
static const list *passing(machine *vm, const list *items, const uint32_t *node, unsigned n) {
    frame *before = vm->frame;
    list *made = ellm_vm_list(vm, items->n);
    size_t count = 0;
    for (size_t i = 0; made != NULL && i < items->n && vm->status == ELLM_OK; i++) {
        if (!enter(vm, before)) {
            break;
        }
        bind_targets(vm, &items->items[i], node, n);
        value test = evaluate(vm, node[3]);
        if (ellm_vm_truth(&test)) {
            made->items[count++] = items->items[i];
        }
    }
    vm->frame = before;
    if (made != NULL) {
        made->n = count;
    }
    return made;
}

static uint32_t loop_name(const machine *vm) {
    for (uint32_t i = 0; i < vm->t->n_strings; i++) {
        const slice *s = &vm->t->strings[i];
        if (s->bytes == 4 && memcmp(vm->t->text + s->offset, "loop", 4) == 0) {
            return i;
        }
    }
    return NO_NODE;
}

static void run_for(machine *vm, const uint32_t *node, unsigned n) {
    value iterable = evaluate(vm, node[2]);
    const list *items = vm->status == ELLM_OK ? ellm_vm_iterate(vm, &iterable) : NULL;
    if (items != NULL && node[3] != NO_NODE) {
        items = passing(vm, items, node, n);
    }
    if (items == NULL) {
        return;
    }
    frame *before = vm->frame;
    uint32_t name = loop_name(vm);
    bool finished = false; /* as in Jinja, a body that ends early does not count against `else` */
    for (size_t i = 0; i < items->n && vm->status == ELLM_OK && vm->flow != OP_BREAK; i++) {
        loop *state = ellm_vm_alloc(vm, 1, sizeof *state);
        if (state == NULL || !enter(vm, before)) {
            break;
        }
        *state = (loop){i, items};
        bind_targets(vm, &items->items[i], node, n);
        if (name != NO_NODE) {
            ellm_vm_set(vm, name, (value){.kind = LOOP, .loop = state});
        }
        vm->flow = 0;
        ellm_vm_run(vm, node[4]);
        finished = finished || vm->flow == 0;
    }
    vm->flow = 0;
    vm->frame = before;
    if (!finished && vm->status == ELLM_OK && node[5] != NO_NODE) {
        if (enter(vm, before)) {
            ellm_vm_run(vm, node[5]);
        }
        vm->frame = before;
    }
}

static void set_attribute(machine *vm, const uint32_t *node) {
    value v = evaluate(vm, node[4]);
    value *target = find(vm->frame, node[2]);
    if (target == NULL || target->kind != NAMESPACE) {
        ellm_vm_fail(vm, "chat template, line %u: cannot assign attribute on non-namespace object", (unsigned)vm->line);
        return;
    }
    ellm_vm_put(vm, target->dict, string_of(vm, node[3]), v);
}

static void define_macro(machine *vm, const uint32_t *node) {
    macro *made = ellm_vm_alloc(vm, 1, sizeof *made);
    if (made != NULL) {
        *made = (macro){node, vm->frame};
        ellm_vm_set(vm, node[2], (value){.kind = MACRO, .macro = made});
    }
}

static void run_node(machine *vm, const uint32_t *node) {
    uint32_t op = node[0] & 0xFF;
    unsigned n = node[0] >> 8;
    value v;
    switch (op) {
    case OP_TEXT:
        v = string_of(vm, node[2]);
        ellm_vm_write(vm, vm->out, v.s, v.bytes);
        break;
    case OP_PRINT:
        v = evaluate(vm, node[2]);
        ellm_vm_print(vm, vm->out, &v);
        break;
    case OP_IF:
        v = evaluate(vm, node[2]);
        if (ellm_vm_truth(&v)) {
            ellm_vm_run(vm, node[3]);
        } else if (node[4] != NO_NODE) {
            ellm_vm_run(vm, node[4]);
        }
        break;
    case OP_FOR: run_for(vm, node, n); break;
    case OP_SET:
        v = evaluate(vm, node[3]);
        ellm_vm_set(vm, node[2], v);
        break;
    case OP_UNPACK:
        v = evaluate(vm, node[2]);
        unpack(vm, &v, node + 3, n - 1);
        break;
    case OP_SET_ATTRIBUTE: set_attribute(vm, node); break;
    case OP_MACRO: define_macro(vm, node); break;
    case OP_SCOPE: {
        frame *before = vm->frame;
        if (enter(vm, before)) {
            ellm_vm_run(vm, node[2]);
        }
        vm->frame = before;
        break;
    }
    case OP_BREAK:
    case OP_CONTINUE: vm->flow = op; break;
    default: /* OP_BLOCK */
        for (unsigned i = 0; i < n && vm->status == ELLM_OK && vm->flow == 0; i++) {
            ellm_vm_run(vm, node[2 + i]);
        }
    }
}

void ellm_vm_run(machine *vm, uint32_t index) {
    if (vm->depth >= most_depth || !ellm_vm_spend(vm, 1)) {
        ellm_vm_limit(vm);
    }
    if (vm->status == ELLM_OK) {
        vm->depth++;
        vm->line = vm->t->words[index + 1];
        run_node(vm, vm->t->words + index);
        vm->depth--;
    }
}
