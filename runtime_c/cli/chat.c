/* chat: a conversation at a terminal (here) or with a program (chat_jsonl.c). */
#include "posix.h"

#include "chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "utf8.h"

static ellm_status keep_text(void *user, const char *text, size_t n_bytes, ellm_error *error) {
    chat *c = user;
    buffer_put(&c->text, text, n_bytes);
    return c->show(c, text, n_bytes, error);
}

static bool cancelled(void *user) {
    chat *c = user;
    return c->poll != NULL && c->poll(c);
}

ellm_status chat_answer(chat *c, const char *question, size_t n_bytes, answer *a, size_t *n_prompt, ellm_error *error) {
    int32_t *ids = NULL;
    size_t n_dropped = 0;
    const settings *s = c->settings;
    *a = (answer){0};
    /* Room for an answer: what was asked for, but no more than a quarter of the context. */
    size_t quarter = (size_t)c->engine.context_length / 4;
    size_t reserve = s->n_tokens >= 0 && (size_t)s->n_tokens < quarter ? (size_t)s->n_tokens : quarter;
    buffer_clear(&c->text);
    conversation_ask(&c->history, question, n_bytes);
    ellm_status status = conversation_prompt(&c->history, &c->engine, reserve, &ids, n_prompt, &n_dropped, error);
    if (status == ELLM_OK && n_dropped > 0) {
        buffer notice = {0};
        buffer_print(&notice, "the context is full: the oldest %s dropped, the system prompt stays",
                     n_dropped == 1 ? "turn was" : "turns were");
        status = c->notice(c, notice.data, error);
        buffer_free(&notice);
    }
    if (status == ELLM_OK) {
        const char *stops[most_stops + 1];
        int n_stops = 0;
        for (; n_stops < s->n_stops; n_stops++) {
            stops[n_stops] = s->stops[n_stops];
        }
        if (!ellm_model_has_chat_template(c->engine.model)) {
            stops[n_stops++] = TRANSCRIPT_STOP;
        }
        answer_request request = {.prompt = ids,
                                  .n_prompt = *n_prompt,
                                  .most_tokens = s->n_tokens,
                                  .sampling = engine_sampling(&c->engine, s),
                                  .stops = stops,
                                  .n_stops = n_stops,
                                  .text = keep_text,
                                  .poll = cancelled,
                                  .user = c};
        status = engine_answer(&c->engine, &request, a, error);
    }
    if (status == ELLM_OK && a->context_full) {
        status = c->notice(c, "the answer was cut off: the context is full", error);
    }
    conversation_answer(&c->history, c->text.data, c->text.n);
    free(ids);
    return status;
}

/* ---- at a terminal ---- */

static const char help[] = "/reset         forget the conversation; the system prompt stays\n"
                           "/system TEXT   set the system prompt\n"
                           "/help          this\n"
                           "/quit          leave, as Ctrl-D does\n"
                           "Ctrl-C         stop the answer; at the prompt: leave";

static void aside(const char *text) {
    bool tty = isatty(STDERR_FILENO) != 0;
    fprintf(stderr, "%s%s%s\n", tty ? "\x1b[2m" : "", text, tty ? "\x1b[0m" : "");
}

static ellm_status show_text(chat *c, const char *text, size_t n_bytes, ellm_error *error) {
    (void)c;
    return output_write(text, n_bytes, error);
}

static ellm_status show_notice(chat *c, const char *text, ellm_error *error) {
    (void)c, (void)error;
    aside(text);
    return ELLM_OK;
}

static ellm_status ask(chat *c, const buffer *line, bool tty, ellm_error *error) {
    answer a;
    size_t n_prompt;
    interrupts_clear();
    ellm_status status = chat_answer(c, line->data, line->n, &a, &n_prompt, error);
    ellm_status written = output_write("\n", 1, error);
    if (status == ELLM_OK && tty) {
        char text[224], guesses[64];
        snprintf(text, sizeof text,
                 "%zu tokens, %.1f tok/s%s; prompt %zu tokens, %zu of them kept from before, %.2f s%s", a.n_ids,
                 a.decode_ms > 0 ? (double)a.n_ids * 1e3 / a.decode_ms : 0.0,
                 answer_guesses(&a, guesses, sizeof guesses), n_prompt, a.n_reused, a.prefill_ms / 1e3,
                 strcmp(a.reason, "cancelled") == 0 ? "; stopped" : "");
        aside(text);
    }
    free(a.ids);
    interrupts_clear();
    if (status == ELLM_CONTEXT_FULL || status == ELLM_TEMPLATE_FAILED) { /* the next question may do better */
        aside(error->text);
        status = ELLM_OK;
    }
    return status != ELLM_OK ? status : written;
}

static ellm_status converse(chat *c, ellm_error *error) {
    bool tty = isatty(STDIN_FILENO) != 0;
    buffer line = {0};
    lines input = {0};
    ellm_status status = ELLM_OK;
    if (tty) {
        char text[256];
        snprintf(text, sizeof text, "%.100s, %.20s, context %d (/help for help)", c->engine.info.name,
                 c->engine.info.scheme, (int)c->engine.context_length);
        aside(text);
        if (c->history.n_turns > 0) {
            snprintf(text, sizeof text, "%zu turns taken up", c->history.n_turns);
            aside(text);
        }
        if (!ellm_model_has_chat_template(c->engine.model)) {
            aside("this model has no chat template; it continues a plain transcript");
        }
    }
    while (status == ELLM_OK) {
        if (tty) {
            status = output_write("> ", 2, error);
        }
        lines_result result = lines_next(&input, true, &line);
        if (result == TOO_LONG) {
            status = ellm_fail(error, ELLM_USAGE, "a line of standard input is too long");
        }
        if (result != LINE) {
            if (tty) {
                (void)output_write("\n", 1, NULL);
            }
            break;
        }
        while (line.n > 0 && (line.data[line.n - 1] == '\r' || line.data[line.n - 1] == ' ')) {
            line.data[--line.n] = '\0';
        }
        if (!ellm_utf8_valid((const uint8_t *)line.data, line.n)) {
            aside(ellm_status_text(ELLM_TEXT_INVALID));
        } else if (strcmp(line.data, "/quit") == 0) {
            break;
        } else if (strcmp(line.data, "/reset") == 0) {
            conversation_reset(&c->history);
            aside("forgotten");
        } else if (strncmp(line.data, "/system ", 8) == 0) {
            conversation_system(&c->history, line.data + 8, line.n - 8);
            aside("from now on");
        } else if (line.data[0] == '/' && strchr(line.data, ' ') == NULL) {
            aside(help);
        } else if (line.n > 0) {
            status = ask(c, &line, tty, error);
        }
    }
    buffer_free(&line);
    buffer_free(&input.data);
    return status;
}

ellm_status chat_main(const settings *s, ellm_error *error) {
    chat c = {.settings = s, .show = show_text, .notice = show_notice};
    ellm_status status = engine_open(&c.engine, s, ELLM_LOOKUP_AUTO, error);
    if (status == ELLM_OK && s->system != NULL) {
        conversation_system(&c.history, s->system, strlen(s->system));
    }
    if (status == ELLM_OK && s->jsonl) {
        status = chat_jsonl(&c, error);
    } else if (status == ELLM_OK) {
        interrupts_catch();
        status = session_begin(&c, error);
        if (status == ELLM_OK) {
            status = converse(&c, error);
            ellm_status kept = session_end(&c, status == ELLM_OK ? error : NULL);
            status = status == ELLM_OK ? kept : status;
        }
    }
    conversation_free(&c.history);
    buffer_free(&c.text);
    engine_close(&c.engine);
    return status;
}
