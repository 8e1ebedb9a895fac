/* Requests of OpenAI's API. Its reference: platform.openai.com/docs/api-reference/chat and /completions. */
#include "posix.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "form.h"
#include "formats.h"
#include "json_write.h"

static void put_optional(buffer *b, const char *text) {
    if (text != NULL) {
        buffer_put_string(b, text);
    } else {
        buffer_put(b, "null", 4);
    }
}

void openai_fail(reply *r, int status, const char *param, const char *code, const char *text) {
    buffer b = {0};
    const char *kind = status == 401   ? "authentication_error"
                       : status >= 500 ? "server_error"
                                       : "invalid_request_error";
    buffer_print(&b, "{\"error\":{\"message\":");
    buffer_put_string(&b, text);
    buffer_print(&b, ",\"type\":\"%s\",\"param\":", kind);
    put_optional(&b, param);
    buffer_print(&b, ",\"code\":");
    put_optional(&b, code);
    buffer_print(&b, "}}");
    reply_json(r, status, &b);
}

static void put_model(const service *s, buffer *b) {
    buffer_print(b, "{\"id\":");
    buffer_put_string(b, s->name);
    buffer_print(b, ",\"object\":\"model\",\"created\":%" PRId64 ",\"owned_by\":\"edgellm\",\"max_model_len\":%d}",
                 s->created, (int)s->context_length);
}

void openai_models(const service *s, reply *r, const char *id) {
    buffer b = {0};
    if (id == NULL) {
        buffer_print(&b, "{\"object\":\"list\",\"data\":[");
        put_model(s, &b);
        buffer_print(&b, "]}");
    } else if (strcmp(id, s->name) == 0) {
        put_model(s, &b);
    } else {
        buffer_print(&b, "model '%.100s' is not on this board; it serves '%.200s'", id, s->name);
        openai_fail(r, 404, "model", "model_not_found", b.data);
        buffer_free(&b);
        return;
    }
    reply_json(r, 200, &b);
}

/* ---- members that both requests have ---- */

typedef struct shared {
    bool stream, include_usage;
    int64_t n;
} shared;

/* {"TOKEN": bias} */
static bool parse_biases(parsing *p, generation *g) {
    const ellm_json *map = member(p->body, "logit_bias");
    generation_options *o = &g->options;
    if (map == NULL) {
        return true;
    }
    if (map->kind != ELLM_JSON_OBJECT || map->count > MOST_BIASES) {
        return parsing_fail(p, 400, "logit_bias", "'logit_bias' must be an object of at most %d tokens",
                            (int)MOST_BIASES);
    }
    o->biases = calloc(map->count + 1, sizeof *o->biases);
    if (o->biases == NULL) {
        return parsing_no_memory(p);
    }
    for (const ellm_json *each = map->first; each != NULL; each = each->next) {
        char *end = NULL;
        double bias = 0;
        long token = strtol(each->key, &end, 10);
        if (*each->key < '0' || *each->key > '9' || *end != '\0' || token >= p->service->info.vocab_size
            || !ellm_json_real(each, &bias) || !(bias >= -1e4 && bias <= 1e4)) {
            return parsing_fail(p, 400, "logit_bias", "'logit_bias' maps token ids below %d to numbers",
                                (int)p->service->info.vocab_size);
        }
        o->biases[o->sampling.n_bias++] = (ellm_logit_bias){(int32_t)token, (float)bias};
    }
    o->sampling.bias = o->biases;
    return true;
}

/* What would change the answer and is not there. */
static bool refuse_unknown(parsing *p) {
    static const char others[][14] = {"functions", "function_call", "audio", "suffix", "echo", "best_of"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        const ellm_json *value = member(p->body, others[i]);
        bool says_no = value != NULL
                       && ((value->kind == ELLM_JSON_BOOL && value->integer == 0)
                           || (value->kind == ELLM_JSON_INT && value->integer == 1));
        if (value != NULL && !says_no) {
            return parsing_fail(p, 400, others[i], "this server has no '%s'", others[i]);
        }
    }
    return true;
}

static bool parse_shared(parsing *p, generation *g, shared *s) {
    const ellm_json *options = member(p->body, "stream_options");
    ellm_sampler_options *o = &g->options.sampling;
    *s = (shared){.n = 1};
    return parse_model(p, "model") && refuse_unknown(p) && parse_bool(p, p->body, "stream", &s->stream)
           && parse_bool(p, options, "include_usage", &s->include_usage)
           && parse_int(p, p->body, "n", 1, MOST_CHOICES, &s->n)
           && parse_float(p, p->body, "repetition_penalty", 1e-4, 1e4, &o->repetition_penalty)
           && parse_sampling(p, p->body, g) && parse_biases(p, g)
           && parse_int(p, p->body, "max_tokens", 1, INT32_MAX, &g->options.most_tokens);
}

static exchange *begin(parsing *p, api_kind kind, const shared *s, generation *const *answers, int n_answers) {
    exchange *e = exchange_begin(p, kind, answers, n_answers, s->n);
    if (e != NULL) {
        e->stream = s->stream;
        e->include_usage = s->include_usage;
    }
    return e;
}

/* ---- chat ---- */

/* The tools that are offered, and whether the answer must call one of them: {"function":{"name":...}} a certain one. */
static bool parse_tools(parsing *p, const ellm_json **tools, form *f) {
    const ellm_json *wanted = member(p->body, "tool_choice");
    const ellm_json *name = member(member(wanted, "function"), "name");
    *tools = member(p->body, "tools");
    f->several = true;
    if (!parse_bool(p, p->body, "parallel_tool_calls", &f->several)) {
        return false;
    }
    if (*tools != NULL && (wanted == NULL || ellm_json_equals(wanted, "auto"))) {
        f->may_call = *tools;
    } else if (ellm_json_equals(wanted, "none")) {
        *tools = NULL;
    } else if (ellm_json_equals(wanted, "required") || name != NULL) {
        f->must_call = *tools;
        f->called = name;
        return *tools != NULL
               || parsing_fail(p, 400, "tool_choice", "'tool_choice' wants a call, and there are no 'tools'");
    } else if (wanted != NULL && !ellm_json_equals(wanted, "auto")) {
        return parsing_fail(p, 400, "tool_choice",
                            "'tool_choice' is \"auto\", \"none\", \"required\" or "
                            "{\"type\":\"function\",\"function\":{\"name\":...}}");
    }
    return true;
}

/* response_format: text, json_object, or json_schema; or a grammar, which OpenAI's API does not have. */
static bool parse_format(parsing *p, form *f) {
    const ellm_json *format = member(p->body, "response_format"), *type = member(format, "type");
    f->param = "response_format";
    f->grammar = member(p->body, "grammar");
    if (ellm_json_equals(type, "json_object")) {
        f->is_object = true;
    } else if (ellm_json_equals(type, "json_schema")) {
        f->schema = member(member(format, "json_schema"), "schema");
        if (f->schema == NULL) {
            return parsing_fail(p, 400, "response_format",
                                "'response_format' wants {\"json_schema\":{\"schema\":...}}");
        }
    } else if (format != NULL && !ellm_json_equals(type, "text")) {
        return parsing_fail(p, 400, "response_format",
                            "'response_format' is of type \"text\", \"json_object\" or \"json_schema\"");
    }
    return true;
}

exchange *openai_chat(parsing *p) {
    shared s;
    bool logprobs = false;
    int64_t n_likely = 0;
    const ellm_json *tools = NULL;
    form f = {0};
    generation *g = parsing_generation(p);
    if (g == NULL) {
        return NULL;
    }
    bool good = parse_shared(p, g, &s)
                && parse_int(p, p->body, "max_completion_tokens", 1, INT32_MAX, &g->options.most_tokens)
                && parse_bool(p, p->body, "logprobs", &logprobs)
                && parse_int(p, p->body, "top_logprobs", 0, MOST_LIKELY, &n_likely) && parse_tools(p, &tools, &f)
                && parse_format(p, &f) && parse_messages(p, member(p->body, "messages"), tools, false, g)
                && form_apply(p, &f, g);
    if (!good) {
        generation_free(g);
        return NULL;
    }
    g->options.n_likely = logprobs ? (int)n_likely : -1;
    exchange *e = begin(p, OPENAI_CHAT, &s, &g, 1);
    for (int i = 0; e != NULL && i < e->n_choices; i++) {
        e->choices[i].tools.is_on = tools != NULL && tools->count > 0;
    }
    return e;
}

/* ---- plain text ---- */

static bool parse_one(parsing *p, const ellm_json *prompt, shared *s, generation **answer) {
    int64_t n_likely = -1;
    generation *g = *answer = parsing_generation(p);
    if (g == NULL) {
        return false;
    }
    g->options.most_tokens = 16; /* as OpenAI's */
    form f = {0};
    bool good = parse_shared(p, g, s) && parse_int(p, p->body, "logprobs", 0, MOST_LIKELY, &n_likely)
                && parse_format(p, &f) && parse_prompt(p, "prompt", prompt, false, g) && form_apply(p, &f, g);
    g->options.n_likely = (int)n_likely;
    return good;
}

exchange *openai_text(parsing *p) {
    const ellm_json *prompt = member(p->body, "prompt");
    generation *answers[MOST_CHOICES] = {NULL};
    shared s = {0};
    int n = 0;
    if (prompt == NULL) {
        parsing_note(p, 400, "prompt", "'prompt' is missing");
        return NULL;
    }
    const ellm_json *first = prompt->kind == ELLM_JSON_ARRAY ? prompt->first : NULL;
    bool is_list = first != NULL && first->kind != ELLM_JSON_INT;
    bool good = true;
    for (const ellm_json *each = is_list ? first : prompt; each != NULL && good; each = is_list ? each->next : NULL) {
        good = (n < MOST_CHOICES || parsing_fail(p, 400, "prompt", "at most %d prompts", (int)MOST_CHOICES))
               && parse_one(p, each, &s, &answers[n++]);
    }
    if (!good) {
        for (int i = 0; i < n; i++) {
            generation_free(answers[i]);
        }
        return NULL;
    }
    return begin(p, OPENAI_TEXT, &s, answers, n);
}
