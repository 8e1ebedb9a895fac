/* The machine protocol of chat: one JSON object per line each way. While an answer is generated, standard input
 * is looked at between two tokens: "cancel" ends the answer, other messages wait their turn. When standard input ends, what was
 * asked is still answered; a reader that is gone shows when the answer is written. */
#include "posix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat.h"
#include "json.h"

enum { region_limit = 64 << 20, most_waiting = 64 };

typedef struct dialogue {
    lines input;
    buffer out, line;
    buffer waiting[most_waiting]; /* messages that came during an answer */
    size_t n_waiting;
    bool hung_up; /* input is hopeless */
} dialogue;

static ellm_status send(dialogue *d, ellm_error *error) {
    buffer_put(&d->out, "}\n", 2);
    ellm_status status = output_write(d->out.data, d->out.n, error);
    buffer_clear(&d->out);
    return status;
}

static ellm_status send_text(dialogue *d, const char *type, const char *text, size_t n_bytes, ellm_error *error) {
    buffer_print(&d->out, "{\"type\":\"%s\",\"text\":", type);
    buffer_put_json(&d->out, text, n_bytes);
    return send(d, error);
}

static ellm_status send_error(dialogue *d, ellm_status failed, const char *text, ellm_error *error) {
    buffer_print(&d->out, "{\"type\":\"error\",\"name\":\"%s\",\"text\":", ellm_status_name(failed));
    const char *shown = text[0] != '\0' ? text : ellm_status_text(failed);
    buffer_put_json(&d->out, shown, strlen(shown));
    return send(d, error);
}

static ellm_status show(chat *c, const char *text, size_t n_bytes, ellm_error *error) {
    return send_text(c->user, "text", text, n_bytes, error);
}

static ellm_status notice(chat *c, const char *text, ellm_error *error) {
    return send_text(c->user, "notice", text, strlen(text), error);
}

static bool is_cancel(const buffer *line) {
    ellm_region region;
    ellm_region_init(&region, region_limit);
    ellm_json *message = NULL;
    bool yes = ellm_json_read(line->data, line->n, &region, ELLM_USAGE, "message", &message, NULL) == ELLM_OK
               && ellm_json_equals(ellm_json_get(message, "type"), "cancel");
    ellm_region_free(&region);
    return yes;
}

static bool poll_input(chat *c) {
    dialogue *d = c->user;
    while (d->n_waiting < most_waiting) {
        switch (lines_next(&d->input, false, &d->line)) {
        case LINE:
            if (is_cancel(&d->line)) {
                return true;
            }
            buffer_put(&d->waiting[d->n_waiting++], d->line.data, d->line.n);
            break;
        case NO_LINE:
        case INTERRUPTED:
        case END: return false;
        case TOO_LONG: d->hung_up = true; return true;
        }
    }
    return false;
}

static ellm_status answer_user(chat *c, dialogue *d, const ellm_json *text, ellm_error *error) {
    answer a;
    size_t n_prompt = 0;
    ellm_error reason = {{0}};
    ellm_status status = chat_answer(c, text->text, text->count, &a, &n_prompt, &reason);
    if (status == ELLM_IO) { /* the reader is gone */
        *error = reason;
    } else if (status != ELLM_OK) {
        status = send_error(d, status, reason.text, error);
    } else {
        buffer_print(&d->out,
                     "{\"type\":\"done\",\"reason\":\"%s\",\"prompt_tokens\":%zu,\"reused_tokens\":%zu,\"tokens\":%zu,"
                     "\"prefill_ms\":%.3f,\"decode_ms\":%.3f,\"guessed\":%llu,\"accepted\":%llu",
                     a.reason, n_prompt, a.n_reused, a.n_ids, a.prefill_ms, a.decode_ms,
                     (unsigned long long)a.lookup.n_guessed, (unsigned long long)a.lookup.n_accepted);
        status = send(d, error);
    }
    free(a.ids);
    return status;
}

/* Another conversation takes the place of this one. */
static ellm_status set_history(chat *c, dialogue *d, const ellm_json *messages, ellm_error *error) {
    if (!conversation_read(&c->history, messages)) {
        return send_error(
            d, ELLM_USAGE,
            "a history is {\"messages\":[...]}: perhaps one of role system, then user and assistant in turn", error);
    }
    buffer_print(&d->out, "{\"type\":\"history\",\"turns\":%zu", c->history.n_turns);
    return send(d, error);
}

static ellm_status handle(chat *c, dialogue *d, const buffer *line, ellm_error *error) {
    ellm_region region;
    ellm_region_init(&region, region_limit);
    ellm_json *message = NULL;
    ellm_error reason = {{0}};
    ellm_status status = ELLM_OK;
    ellm_status parsed = ellm_json_read(line->data, line->n, &region, ELLM_USAGE, "message", &message, &reason);
    const ellm_json *type = ellm_json_get(message, "type"), *text = ellm_json_get(message, "text");
    bool has_text = text != NULL && text->kind == ELLM_JSON_STRING;
    if (parsed != ELLM_OK) {
        status = send_error(d, parsed, reason.text, error);
    } else if (ellm_json_equals(type, "user") && has_text) {
        status = answer_user(c, d, text, error);
    } else if (ellm_json_equals(type, "system") && has_text) {
        conversation_system(&c->history, text->text, text->count);
    } else if (ellm_json_equals(type, "reset")) {
        conversation_reset(&c->history);
    } else if (ellm_json_equals(type, "history")) {
        status = set_history(c, d, ellm_json_get(message, "messages"), error);
    } else if (!ellm_json_equals(type, "cancel")) { /* a cancel that came too late is no mistake */
        status = send_error(d, ELLM_USAGE,
                            "a message is {\"type\":\"user|system\",\"text\":...}, or of type history, cancel or reset",
                            error);
    }
    ellm_region_free(&region);
    return status;
}

ellm_status chat_jsonl(chat *c, ellm_error *error) {
    dialogue d = {0};
    c->user = &d;
    c->show = show;
    c->notice = notice;
    c->poll = poll_input;
    const ellm_model_info *info = &c->engine.info;
    ellm_status status = session_begin(c, error);
    if (status != ELLM_OK) {
        return status;
    }
    buffer_print(&d.out, "{\"type\":\"ready\",\"version\":\"%s\",\"name\":", RT_VERSION);
    buffer_put_json(&d.out, info->name, strlen(info->name));
    buffer_print(&d.out, ",\"scheme\":\"%s\",\"context\":%d,\"threads\":%d,\"load_ms\":%.3f", info->scheme,
                 (int)c->engine.context_length, (int)engine_threads_prefill(&c->engine), c->engine.load_ms);
    if (c->settings->session != NULL) {
        buffer_print(&d.out, ",\"messages\":");
        conversation_write(&c->history, &d.out);
    }
    status = send(&d, error);
    buffer line = {0};
    while (status == ELLM_OK && (!d.hung_up || d.n_waiting > 0)) {
        if (d.n_waiting > 0) {
            buffer_clear(&line);
            buffer_put(&line, d.waiting[0].data, d.waiting[0].n);
            buffer_free(&d.waiting[0]);
            memmove(d.waiting, d.waiting + 1, --d.n_waiting * sizeof *d.waiting);
            d.waiting[d.n_waiting] = (buffer){0};
        } else {
            lines_result result = lines_next(&d.input, true, &line);
            if (result == INTERRUPTED) {
                continue;
            }
            if (result == TOO_LONG) {
                status = ellm_fail(error, ELLM_USAGE, "a line of standard input is too long");
            }
            if (result != LINE) {
                break;
            }
        }
        if (line.n > 0) {
            status = handle(c, &d, &line, error);
        }
    }
    ellm_status kept = session_end(c, status == ELLM_OK ? error : NULL); /* also where the reader is gone */
    status = status == ELLM_OK ? kept : status;
    for (size_t i = 0; i < d.n_waiting; i++) {
        buffer_free(&d.waiting[i]);
    }
    buffer_free(&line);
    buffer_free(&d.line);
    buffer_free(&d.out);
    buffer_free(&d.input.data);
    return status;
}
