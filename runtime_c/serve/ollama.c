/* Ollama's API: github.com/ollama/ollama/blob/main/docs/api.md. What would change the models on the board is not there:
 * they come by `edgellm deploy`. */
#include "posix.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "form.h"
#include "formats.h"
#include "json_write.h"
#include "program.h"

void ollama_fail(reply *r, int status, const char *text) {
    buffer b = {0};
    buffer_print(&b, "{\"error\":");
    buffer_put_string(&b, text);
    buffer_put(&b, "}", 1);
    reply_json(r, status, &b);
}

/* ---- what is here ---- */

static void put_time(int64_t seconds, long ns, buffer *b) {
    time_t whole = (time_t)seconds;
    struct tm utc;
    char text[40] = "1970-01-01T00:00:00";
    if (gmtime_r(&whole, &utc) != NULL) {
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    }
    buffer_print(b, "\"%s.%09ldZ\"", text, ns);
}

static void put_now(buffer *b) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    put_time((int64_t)now.tv_sec, now.tv_nsec, b);
}

/* "LlamaForCausalLM" -> "llama": what clients know families by. */
static void put_family(const service *s, buffer *b) {
    char family[64];
    size_t n = 0;
    for (const char *at = s->info.architecture; *at != '\0' && n + 1 < sizeof family; at++) {
        if (strncmp(at, "For", 3) == 0) {
            break;
        }
        family[n++] = *at >= 'A' && *at <= 'Z' ? (char)(*at - 'A' + 'a') : *at;
    }
    family[n] = '\0';
    buffer_put_string(b, family);
}

static void put_details(const service *s, buffer *b) {
    double n = (double)s->n_parameters;
    buffer_print(b, "{\"parent_model\":\"\",\"format\":\"edgellm\",\"family\":");
    put_family(s, b);
    buffer_print(b, ",\"families\":[");
    put_family(s, b);
    buffer_print(b, "],\"parameter_size\":\"%.1f%s\",\"quantization_level\":", n >= 1e9 ? n / 1e9 : n / 1e6,
                 n >= 1e9 ? "B" : "M");
    buffer_put_string(b, s->info.scheme);
    buffer_put(b, "}", 1);
}

static void put_model(const service *s, buffer *b) {
    buffer tagged = {0};
    buffer_print(&tagged, "%s:latest", s->name);
    buffer_print(b, "\"name\":");
    buffer_put_string(b, tagged.data);
    buffer_print(b, ",\"model\":");
    buffer_put_string(b, tagged.data);
    buffer_print(b, ",\"size\":%" PRIu64 ",\"digest\":\"%s\",\"details\":", s->info.weight_bytes, s->sha256);
    put_details(s, b);
    buffer_free(&tagged);
}

void ollama_models(const service *s, bool loaded, reply *r) {
    buffer b = {0};
    buffer_print(&b, "{\"models\":[{");
    put_model(s, &b);
    if (loaded) {
        buffer_print(&b, ",\"expires_at\":\"9999-12-31T23:59:59Z\",\"size_vram\":0,\"context_length\":%d",
                     (int)s->context_length);
    } else {
        buffer_print(&b, ",\"modified_at\":");
        put_time(s->created, 0, &b);
    }
    buffer_put(&b, "}]}", 3);
    reply_json(r, 200, &b);
}

void ollama_show(const service *s, reply *r) {
    buffer b = {0}, family = {0};
    bool chats = ellm_model_has_chat_template(s->model);
    put_family(s, &family);
    buffer_drop(&family, 1); /* without its quotes */
    family.data[--family.n] = '\0';
    buffer_print(&b, "{\"modelfile\":\"\",\"parameters\":\"\",\"template\":\"\",\"details\":");
    put_details(s, &b);
    buffer_print(&b,
                 ",\"model_info\":{\"general.architecture\":\"%s\",\"general.parameter_count\":%" PRId64
                 ",\"%s.context_length\":%d,\"%s.vocab_size\":%d},\"capabilities\":[\"completion\"%s],\"modified_at\":",
                 family.data, s->n_parameters, family.data, (int)s->context_length, family.data,
                 (int)s->info.vocab_size, chats ? ",\"tools\"" : "");
    put_time(s->created, 0, &b);
    if (ellm_model_system(s->model) != NULL) {
        buffer_print(&b, ",\"system\":");
        buffer_put_string(&b, ellm_model_system(s->model));
    }
    buffer_put(&b, "}", 1);
    reply_json(r, 200, &b);
    buffer_free(&family);
}

void ollama_pull(reply *r, bool stream) {
    static const char here[] = "{\"status\":\"the model is on this board\"}\n", done[] = "{\"status\":\"success\"}\n";
    if (!stream) {
        reply_put(r, 200, "application/json", "", done, sizeof done - 1);
        return;
    }
    reply_begin(r, "application/x-ndjson");
    reply_piece(r, here, sizeof here - 1);
    reply_piece(r, done, sizeof done - 1);
    reply_end(r);
}

/* ---- requests ---- */

/* The members of "options", by their names in Ollama's modelfiles. */
static bool parse_options(parsing *p, generation *g) {
    const ellm_json *o = member(p->body, "options");
    int64_t window = g->options.sampling.penalty_window, context = 0;
    if (o != NULL && o->kind != ELLM_JSON_OBJECT) {
        return parsing_fail(p, 400, "options", "'options' must be an object");
    }
    bool good = parse_sampling(p, o, g) && parse_int(p, o, "num_predict", INT32_MIN, INT32_MAX, &g->options.most_tokens)
                && parse_float(p, o, "repeat_penalty", 1e-4, 1e4, &g->options.sampling.repetition_penalty)
                && parse_int(p, o, "repeat_last_n", -1, 32767, &window)
                && parse_int(p, o, "num_ctx", 0, INT64_MAX, &context);
    g->options.sampling.penalty_window = window < 0 ? 32767 : (int32_t)window;
    if (window == 0 && member(o, "repeat_last_n") != NULL) { /* to Ollama no penalty, to the sampler its own window */
        g->options.sampling.repetition_penalty = 1;
    }
    return good;
}

static bool refuse_unknown(parsing *p) {
    const ellm_json *think = member(p->body, "think");
    if (think != NULL && !(think->kind == ELLM_JSON_BOOL && think->integer == 0)) {
        return parsing_fail(p, 400, "think", "this server does not tell thoughts from answers: leave 'think' out");
    }
    static const char others[][9] = {"suffix", "template", "images", "context"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        const ellm_json *value = member(p->body, others[i]);
        if (value != NULL && value->count > 0) {
            return parsing_fail(p, 400, others[i], "this server has no '%s'", others[i]);
        }
    }
    return true;
}

/* A request without a prompt asks for the model to be loaded. It is. */
static exchange *answer_loaded(const service *s, bool is_chat, reply *r) {
    buffer b = {0};
    buffer_print(&b, "{\"model\":");
    buffer_put_string(&b, s->name);
    buffer_print(&b, ",\"created_at\":");
    put_now(&b);
    buffer_print(&b, ",%s,\"done\":true,\"done_reason\":\"load\"}",
                 is_chat ? "\"message\":{\"role\":\"assistant\",\"content\":\"\"}" : "\"response\":\"\"");
    reply_json(r, 200, &b);
    return NULL;
}

static exchange *begin(parsing *p, api_kind kind, bool stream, generation *g) {
    exchange *e = exchange_begin(p, kind, &g, 1, 1);
    if (e != NULL) {
        e->stream = stream;
    }
    return e;
}

/* format: "json", or a schema; or a grammar, which Ollama's API does not have. */
static bool parse_format(parsing *p, const ellm_json *tools, generation *g) {
    const ellm_json *format = member(p->body, "format");
    form f = {.param = "format", .grammar = member(p->body, "grammar"), .may_call = tools, .several = true};
    if (format != NULL && format->kind == ELLM_JSON_STRING && format->count > 0) {
        f.is_object = true;
        if (!ellm_json_equals(format, "json")) {
            return parsing_fail(p, 400, "format", "'format' is \"json\" or a JSON schema");
        }
    } else if (format != NULL && format->kind != ELLM_JSON_STRING) {
        f.schema = format;
    }
    return form_apply(p, &f, g);
}

/* An empty generation, and what all requests share. */
static generation *parse_common(parsing *p, bool *stream) {
    generation *g = parsing_generation(p);
    bool good = g != NULL && parse_model(p, "model") && refuse_unknown(p) && parse_bool(p, p->body, "stream", stream)
                && parse_options(p, g);
    if (!good) {
        generation_free(g);
        return NULL;
    }
    return g;
}

exchange *ollama_chat(parsing *p, reply *r) {
    bool stream = true;
    const ellm_json *messages = member(p->body, "messages"), *tools = member(p->body, "tools");
    generation *g = parse_common(p, &stream);
    if (g == NULL) {
        return NULL;
    }
    if (messages == NULL || (messages->kind == ELLM_JSON_ARRAY && messages->count == 0)) {
        generation_free(g);
        return answer_loaded(p->service, true, r);
    }
    if (!parse_messages(p, messages, tools, true, g) || !parse_format(p, tools, g)) {
        generation_free(g);
        return NULL;
    }
    exchange *e = begin(p, OLLAMA_CHAT, stream, g);
    if (e != NULL) {
        e->choices[0].tools.is_on = tools != NULL && tools->count > 0;
    }
    return e;
}

/* The prompt as a conversation of one question, by the chat template. */
static bool parse_question(parsing *p, const ellm_json *prompt, const ellm_json *system, generation *g) {
    buffer b = {0};
    ellm_json *messages = NULL;
    buffer_put(&b, "[", 1);
    if (system != NULL && system->kind == ELLM_JSON_STRING && system->count > 0) {
        buffer_print(&b, "{\"role\":\"system\",\"content\":");
        buffer_put_value(&b, system);
        buffer_print(&b, "},");
    }
    buffer_print(&b, "{\"role\":\"user\",\"content\":");
    buffer_put_value(&b, prompt);
    buffer_print(&b, "}]");
    bool good = ellm_json_read(b.data, b.n, &p->region, ELLM_USAGE, "the prompt", &messages, NULL) == ELLM_OK
                || parsing_fail(p, 413, "prompt", "the prompt is too long");
    buffer_free(&b);
    return good && parse_messages(p, messages, NULL, true, g);
}

exchange *ollama_text(parsing *p, reply *r) {
    bool stream = true, raw = false;
    const ellm_json *prompt = member(p->body, "prompt");
    generation *g = parse_common(p, &stream);
    if (g == NULL) {
        return NULL;
    }
    if (prompt == NULL || (prompt->kind == ELLM_JSON_STRING && prompt->count == 0)) {
        generation_free(g);
        return answer_loaded(p->service, false, r);
    }
    bool good = (prompt->kind == ELLM_JSON_STRING || parsing_fail(p, 400, "prompt", "'prompt' must be a text"))
                && parse_bool(p, p->body, "raw", &raw);
    raw = raw || !ellm_model_has_chat_template(p->service->model);
    good = good
           && (raw ? parse_text(p, prompt->text, prompt->count, true, g) && check_room(p, g)
                   : parse_question(p, prompt, member(p->body, "system"), g))
           && parse_format(p, NULL, g);
    if (!good) {
        generation_free(g);
        return NULL;
    }
    return begin(p, OLLAMA_TEXT, stream, g);
}

/* ---- answers ---- */

void ollama_call(choice *c, const char *name, size_t n_name, const ellm_json *arguments) {
    buffer *b = &c->calls;
    buffer_put(b, ",", b->n > 0);
    buffer_print(b, "{\"function\":{\"name\":");
    buffer_put_json(b, name, n_name);
    buffer_print(b, ",\"arguments\":");
    buffer_put_value(b, arguments);
    buffer_print(b, "}}");
    c->n_calls++;
}

static void put_line(choice *c, bool ended, buffer *b) {
    const exchange *e = c->exchange;
    buffer_print(b, "{\"model\":");
    buffer_put_string(b, e->service->name);
    buffer_print(b, ",\"created_at\":");
    put_now(b);
    buffer_print(b, e->kind == OLLAMA_CHAT ? ",\"message\":{\"role\":\"assistant\",\"content\":" : ",\"response\":");
    buffer_put_text(b, &c->text);
    if (c->calls.n > 0) {
        buffer_print(b, ",\"tool_calls\":[");
        buffer_put(b, c->calls.data, c->calls.n);
        buffer_put(b, "]", 1);
    }
    buffer_print(b, "%s,\"done\":%s", e->kind == OLLAMA_CHAT ? "}" : "", ended ? "true" : "false");
    if (ended) { /* durations in ns */
        const batch_news *n = &c->news;
        const generation_times *t = &n->times;
        buffer_print(b,
                     ",\"done_reason\":\"%s\",\"total_duration\":%.0f,\"load_duration\":0,\"prompt_eval_count\":%zu,"
                     "\"prompt_eval_duration\":%.0f,\"eval_count\":%zu,\"eval_duration\":%.0f",
                     n->reason == ENDED_LENGTH ? "length" : "stop", (t->ended - t->submitted) * 1e6, n->n_prompt,
                     (t->first - t->begun) * 1e6, n->n_tokens, (t->ended - t->first) * 1e6);
    }
    buffer_print(b, "}\n");
}

void ollama_delta(choice *c, int index, bool ended, reply *r) {
    buffer b = {0};
    (void)index; /* there is one */
    put_line(c, ended, &b);
    reply_piece(r, b.data, b.n);
    buffer_free(&b);
}

void ollama_whole(exchange *e, reply *r) {
    buffer b = {0};
    put_line(&e->choices[0], true, &b);
    reply_json(r, 200, &b);
}

void ollama_finish(exchange *e, reply *r) {
    (void)e, (void)r; /* the last line says that it is the last */
}
