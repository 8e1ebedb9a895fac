/* Answers in OpenAI's form: whole ones, and chunks as server-sent events. */
#include "posix.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "formats.h"
#include "json_write.h"

static const char *reason_of(const choice *c) {
    return c->n_calls > 0 ? "tool_calls" : c->news.reason == ENDED_LENGTH ? "length" : "stop";
}

void openai_call(choice *c, const char *name, size_t n_name, const ellm_json *arguments) {
    buffer text = {0}, *b = &c->calls;
    buffer_put_value(&text, arguments);
    buffer_put(b, ",", b->n > 0);
    buffer_print(b, "{");
    if (c->exchange->stream) {
        buffer_print(b, "\"index\":%zu,", c->n_calls);
    }
    buffer_print(b, "\"id\":\"call_%s_%d_%zu\",\"type\":\"function\",\"function\":{\"name\":",
                 c->exchange->id + strlen("chatcmpl-"), (int)(c - c->exchange->choices), c->n_calls);
    buffer_put_json(b, name, n_name);
    buffer_print(b, ",\"arguments\":");
    buffer_put_json(b, text.data, text.n);
    buffer_print(b, "}}");
    buffer_free(&text);
    c->n_calls++;
}

/* ---- log-probabilities ---- */

/* A token's text as it stands alone; pieces of a character have none of their own and show as U+FFFD. */
static void put_token(const service *s, int32_t token, buffer *b, char *text, size_t cap, size_t *n) {
    if (ellm_decode(s->model, &token, 1, false, text, cap, n) != ELLM_OK) {
        *n = 0;
    }
    buffer_put_json(b, text, *n);
}

/* NaN and infinities are no JSON. */
static void put_logprob(buffer *b, float value) {
    if (isfinite(value)) {
        buffer_print(b, "%.6f", (double)value);
    } else {
        buffer_print(b, "null");
    }
}

static void put_likely(const service *s, const likely_token *likely, buffer *b) {
    char text[512];
    size_t n;
    buffer_print(b, "{\"token\":");
    put_token(s, likely->token, b, text, sizeof text, &n);
    buffer_print(b, ",\"logprob\":");
    put_logprob(b, likely->logprob);
    buffer_print(b, ",\"bytes\":[");
    for (size_t i = 0; i < n; i++) {
        buffer_print(b, "%s%d", i == 0 ? "" : ",", (unsigned char)text[i]);
    }
    buffer_print(b, "]");
}

static void put_chat_notes(choice *c, buffer *b) {
    const service *s = c->exchange->service;
    size_t n = c->notes.n / sizeof(token_note);
    buffer_print(b, "{\"content\":[");
    for (size_t i = 0; i < n; i++) {
        token_note note;
        memcpy(&note, c->notes.data + i * sizeof note, sizeof note);
        buffer_put(b, ",", i > 0);
        put_likely(s, &note.chosen, b);
        buffer_print(b, ",\"top_logprobs\":[");
        for (int32_t k = 0; k < note.n_likely; k++) {
            buffer_put(b, ",", k > 0);
            put_likely(s, &note.likely[k], b);
            buffer_put(b, "}", 1);
        }
        buffer_print(b, "]}");
    }
    buffer_print(b, "],\"refusal\":null}");
}

static void put_text_notes(choice *c, buffer *b) {
    const service *s = c->exchange->service;
    buffer tokens = {0}, logprobs = {0}, tops = {0};
    size_t n = c->notes.n / sizeof(token_note), n_bytes;
    char text[512];
    for (size_t i = 0; i < n; i++) {
        token_note note;
        memcpy(&note, c->notes.data + i * sizeof note, sizeof note);
        buffer_put(&tokens, ",", i > 0);
        put_token(s, note.chosen.token, &tokens, text, sizeof text, &n_bytes);
        buffer_put(&logprobs, ",", i > 0);
        put_logprob(&logprobs, note.chosen.logprob);
        buffer_print(&tops, "%s{", i == 0 ? "" : ",");
        for (int32_t k = 0; k < note.n_likely; k++) {
            buffer_put(&tops, ",", k > 0);
            put_token(s, note.likely[k].token, &tops, text, sizeof text, &n_bytes);
            buffer_put(&tops, ":", 1);
            put_logprob(&tops, note.likely[k].logprob);
        }
        buffer_put(&tops, "}", 1);
    }
    buffer_print(b, "{\"tokens\":[");
    buffer_put(b, tokens.data, tokens.n);
    buffer_print(b, "],\"token_logprobs\":[");
    buffer_put(b, logprobs.data, logprobs.n);
    buffer_print(b, "],\"top_logprobs\":[");
    buffer_put(b, tops.data, tops.n);
    buffer_print(b, "],\"text_offset\":null}");
    buffer_free(&tokens);
    buffer_free(&logprobs);
    buffer_free(&tops);
}

static void put_notes(choice *c, buffer *b) {
    buffer_print(b, ",\"logprobs\":");
    if (c->notes.n == 0) {
        buffer_print(b, "null");
    } else if (c->exchange->kind == OPENAI_CHAT) {
        put_chat_notes(c, b);
    } else {
        put_text_notes(c, b);
    }
    buffer_clear(&c->notes);
}

/* ---- envelopes ---- */

static void put_head(const exchange *e, bool is_chunk, buffer *b) {
    const char *object = e->kind == OPENAI_TEXT ? "text_completion"
                         : is_chunk             ? "chat.completion.chunk"
                                                : "chat.completion";
    buffer_print(b, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":", e->id, object, e->created);
    buffer_put_string(b, e->service->name);
    buffer_print(b, ",\"system_fingerprint\":\"%.12s\",\"choices\":[", e->service->sha256);
}

/* Choices of one prompt share it: it counts once per prompt, as OpenAI counts. */
static void put_usage(const exchange *e, buffer *b) {
    size_t n_prompt = 0, n_reused = 0, n_tokens = 0;
    for (int i = 0; i < e->n_choices; i++) {
        const batch_news *news = &e->choices[i].news;
        if (i % e->n_each == 0) {
            n_prompt += news->n_prompt;
            n_reused += news->n_reused;
        }
        n_tokens += news->n_tokens;
    }
    buffer_print(b,
                 "{\"prompt_tokens\":%zu,\"completion_tokens\":%zu,\"total_tokens\":%zu,"
                 "\"prompt_tokens_details\":{\"cached_tokens\":%zu}}",
                 n_prompt, n_tokens, n_prompt + n_tokens, n_reused);
}

/* How long it took on the board, without the way to the client: as llama.cpp's server says it. Of several answers
 * there is no one time. */
static void put_timings(const exchange *e, buffer *b) {
    const batch_news *news = &e->choices[0].news;
    const generation_times *t = &news->times;
    if (e->n_choices == 1 && news->n_tokens > 0) {
        buffer_print(b, ",\"timings\":{\"prompt_n\":%zu,\"prompt_ms\":%.3f,\"predicted_n\":%zu,\"predicted_ms\":%.3f}",
                     news->n_prompt - news->n_reused, t->first - t->begun, news->n_tokens, t->ended - t->first);
    }
}

static void send_event(const buffer *b, reply *r) {
    buffer line = {0};
    buffer_put(&line, "data: ", 6);
    buffer_put(&line, b->data, b->n);
    buffer_put(&line, "\n\n", 2);
    reply_piece(r, line.data, line.n);
    buffer_free(&line);
}

static void put_chat_delta(choice *c, buffer *b) {
    buffer_print(b, "\"delta\":{");
    if (!c->has_role) {
        c->has_role = true;
        buffer_print(b, "\"role\":\"assistant\",\"content\":");
        buffer_put_text(b, &c->text);
    } else if (c->text.n > 0) {
        buffer_print(b, "\"content\":");
        buffer_put_json(b, c->text.data, c->text.n);
    }
    if (c->calls.n > 0) {
        buffer_print(b, "%s\"tool_calls\":[", b->data[b->n - 1] == '{' ? "" : ",");
        buffer_put(b, c->calls.data, c->calls.n);
        buffer_put(b, "]", 1);
    }
    buffer_put(b, "}", 1);
}

void openai_delta(choice *c, int index, bool ended, reply *r) {
    exchange *e = c->exchange;
    buffer b = {0};
    put_head(e, true, &b);
    buffer_print(&b, "{\"index\":%d,", index);
    if (e->kind == OPENAI_CHAT) {
        put_chat_delta(c, &b);
    } else {
        buffer_print(&b, "\"text\":");
        buffer_put_text(&b, &c->text);
    }
    put_notes(c, &b);
    if (ended) {
        buffer_print(&b, ",\"finish_reason\":\"%s\"}]", reason_of(c));
    } else {
        buffer_print(&b, ",\"finish_reason\":null}]");
    }
    buffer_print(&b, e->include_usage ? ",\"usage\":null}" : "}");
    send_event(&b, r);
    buffer_free(&b);
}

void openai_finish(exchange *e, reply *r) {
    buffer b = {0};
    if (e->include_usage) {
        put_head(e, true, &b);
        buffer_print(&b, "],\"usage\":");
        put_usage(e, &b);
        put_timings(e, &b);
        buffer_put(&b, "}", 1);
        send_event(&b, r);
        buffer_clear(&b);
    }
    buffer_print(&b, "[DONE]");
    send_event(&b, r);
    buffer_free(&b);
}

static void put_message(choice *c, buffer *b) {
    buffer_print(b, "\"message\":{\"role\":\"assistant\",\"content\":");
    if (c->text.n == 0 && c->n_calls > 0) {
        buffer_print(b, "null");
    } else {
        buffer_put_text(b, &c->text);
    }
    buffer_print(b, ",\"refusal\":null");
    if (c->n_calls > 0) {
        buffer_print(b, ",\"tool_calls\":[");
        buffer_put(b, c->calls.data, c->calls.n);
        buffer_put(b, "]", 1);
    }
    buffer_put(b, "}", 1);
}

void openai_whole(exchange *e, reply *r) {
    buffer b = {0};
    put_head(e, false, &b);
    for (int i = 0; i < e->n_choices; i++) {
        choice *c = &e->choices[i];
        buffer_print(&b, "%s{\"index\":%d,", i == 0 ? "" : ",", i);
        if (e->kind == OPENAI_CHAT) {
            put_message(c, &b);
        } else {
            buffer_print(&b, "\"text\":");
            buffer_put_text(&b, &c->text);
        }
        put_notes(c, &b);
        buffer_print(&b, ",\"finish_reason\":\"%s\"}", reason_of(c));
    }
    buffer_print(&b, "],\"usage\":");
    put_usage(e, &b);
    put_timings(e, &b);
    buffer_put(&b, "}", 1);
    reply_json(r, 200, &b);
}
