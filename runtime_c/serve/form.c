#include "posix.h"

#include "form.h"

#include <stdio.h>
#include <string.h>

#include "grammar.h"
#include "json_write.h"
#include "sha256.h"

enum { most_calls = 8, most_tools = 128 };

/* ---- calls, as tool_calls.h reads them ---- */

static ellm_node_id put_key(ellm_builder *b, const char *key, ellm_node_id value) {
    return ellm_put_name(b, key, ellm_put_colon(b, value));
}

/* <tool_call> {"name": NAME, "arguments": what the tool's parameters allow} </tool_call> */
static ellm_node_id put_call(ellm_builder *b, const ellm_json *tool, int index, ellm_node_id next) {
    static const char open[] = "<tool_call>", close[] = "</tool_call>";
    const ellm_json *function = member(tool, "function"), *parameters = member(function, "parameters");
    char place[64];
    snprintf(place, sizeof place, "tools/%d/function/parameters", index);
    ellm_node_id end = ellm_put_blanks(b, ellm_put_text(b, close, sizeof close - 1, next));
    end = ellm_put_blanks(b, ellm_put_bytes(b, '}', '}', end));
    ellm_node_id arguments =
        parameters != NULL ? ellm_put_schema(b, parameters, place, end) : ellm_put_text(b, "{}", 2, end);
    ellm_node_id second = ellm_put_blanks(b, put_key(b, "arguments", arguments));
    ellm_node_id name = ellm_put_json(b, member(function, "name"), ellm_put_bytes(b, ',', ',', second));
    ellm_node_id inner = ellm_put_bytes(b, '{', '{', ellm_put_blanks(b, put_key(b, "name", name)));
    return ellm_put_text(b, open, sizeof open - 1, ellm_put_blanks(b, inner));
}

typedef struct calls {
    uint32_t rule;
} calls;

static ellm_node_id put_another(ellm_builder *b, void *user, int64_t index, ellm_node_id next) {
    const calls *c = user;
    ellm_node_id call = ellm_put_call(b, c->rule, next);
    return index == 0 ? call : ellm_put_blanks(b, call);
}

static ellm_node_id put_calls(parsing *p, ellm_builder *b, const form *f, const ellm_json *tools) {
    ellm_node_id any = ELLM_NODE_FAIL;
    int index = 0;
    bool found = false;
    calls c = {ellm_rule_new(b, NULL, "")};
    if (tools->kind != ELLM_JSON_ARRAY || tools->count > most_tools) {
        parsing_note(p, 400, "tools", "'tools' must be an array of at most %d tools", (int)most_tools);
        return any;
    }
    for (const ellm_json *tool = tools->first; tool != NULL && b->status == ELLM_OK; tool = tool->next, index++) {
        const ellm_json *name = member(member(tool, "function"), "name");
        bool is_wanted = name != NULL
                         && (f->called == NULL
                             || (ellm_json_text(f->called, 256) != NULL && ellm_json_equals(name, f->called->text)));
        if (is_wanted) {
            found = true;
            any = ellm_put_either(b, any, put_call(b, tool, index, ELLM_NODE_END));
        }
    }
    if (!found) {
        parsing_note(p, 400, f->called != NULL ? "tool_choice" : "tools",
                     f->called != NULL ? "'tool_choice' names a function that is not among the 'tools'"
                                       : "there are no 'tools' to call");
    }
    b->rules[c.rule].start = any;
    return ellm_put_repeat(b, 1, f->several && f->called == NULL ? most_calls : 1, 1, put_another, &c, ELLM_NODE_END);
}

/* ---- forms ---- */

static ellm_node_id put_form(parsing *p, ellm_builder *b, const form *f) {
    if (f->must_call != NULL) {
        return put_calls(p, b, f, f->must_call);
    }
    ellm_node_id root = f->grammar != NULL  ? ellm_put_grammar(b, f->grammar->text, f->grammar->count)
                        : f->schema != NULL ? ellm_put_schema(b, f->schema, "#", ELLM_NODE_END)
                                            : ellm_put_any_object(b, ELLM_NODE_END);
    if (f->may_call != NULL && f->may_call->count > 0 && b->status == ELLM_OK) {
        root = ellm_put_either(b, root, put_calls(p, b, f, f->may_call));
    }
    return root;
}

/* The SHA-256 of all that the grammar depends on. */
static void key_of(const form *f, char key[65]) {
    const ellm_json *const parts[] = {f->schema, f->grammar, f->may_call, f->must_call, f->called};
    buffer b = {0};
    buffer_print(&b, "%d%d", (int)f->is_object, (int)f->several);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        buffer_put(&b, ",", 1);
        if (parts[i] != NULL) {
            buffer_put_value(&b, parts[i]);
        }
    }
    ellm_sha256 sha;
    ellm_sha256_init(&sha);
    ellm_sha256_update(&sha, b.data, b.n);
    ellm_sha256_hex(&sha, key);
    buffer_free(&b);
}

static const char *param_of(const form *f, const char *text) {
    return f->must_call != NULL || strncmp(text, "tools/", 6) == 0 ? "tools"
           : f->grammar != NULL                                    ? "grammar"
                                                                   : f->param;
}

static ellm_grammar *compile(parsing *p, const form *f) {
    ellm_builder b;
    ellm_error error = {{0}};
    ellm_grammar *grammar = NULL;
    ellm_node_id root = ELLM_NODE_FAIL;
    if (ellm_builder_open(&b, &error) == ELLM_OK) {
        root = put_form(p, &b, f);
        if (p->status != 0) {
            b.status = ELLM_GRAMMAR_INVALID;
        }
    }
    ellm_status status = ellm_builder_close(&b, root, &grammar);
    if (status != ELLM_OK) {
        const char *param = param_of(f, error.text);
        parsing_note(p, status == ELLM_NO_MEMORY ? 500 : 400, param, "'%s': %s", param, error.text);
    }
    return grammar;
}

bool form_apply(parsing *p, const form *f, generation *g) {
    service *s = p->service;
    char key[65];
    known_form *oldest = &s->forms[0];
    if (f->schema == NULL && f->grammar == NULL && !f->is_object && f->must_call == NULL) {
        return true;
    }
    if (f->grammar != NULL && (f->schema != NULL || f->is_object || f->grammar->kind != ELLM_JSON_STRING)) {
        return parsing_fail(p, 400, "grammar", "'grammar' must be a text, and the only form that is asked for");
    }
    if (s->vocabulary == NULL && ellm_vocabulary_open(s->model, &s->vocabulary) != ELLM_OK) {
        return parsing_no_memory(p);
    }
    key_of(f, key);
    g->options.vocabulary = s->vocabulary;
    for (int i = 0; i < KNOWN_FORMS; i++) {
        known_form *k = &s->forms[i];
        if (k->grammar != NULL && strcmp(k->key, key) == 0) {
            k->used = ++s->n_forms;
            g->options.grammar = ellm_grammar_share(k->grammar);
            return true;
        }
        oldest = k->used < oldest->used ? k : oldest;
    }
    ellm_grammar *made = compile(p, f);
    if (made == NULL) {
        return false;
    }
    ellm_grammar_close(oldest->grammar);
    oldest->grammar = made;
    oldest->used = ++s->n_forms;
    memcpy(oldest->key, key, sizeof key);
    g->options.grammar = ellm_grammar_share(made);
    return true;
}

void form_forget(service *s) {
    for (int i = 0; i < KNOWN_FORMS; i++) {
        ellm_grammar_close(s->forms[i].grammar);
        s->forms[i].grammar = NULL;
    }
    ellm_vocabulary_close(s->vocabulary);
    s->vocabulary = NULL;
}
