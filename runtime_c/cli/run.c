/* run: one prompt, one answer. */
#include "posix.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "conversation.h"

enum { usual_rows = 64, most_rows = 1024 }; /* of --step */

/* What the command line asks the model to continue. */
static ellm_status make_prompt(const settings *s, engine *e, bool *templated, int32_t **ids, size_t *n,
                               ellm_error *error) {
    *templated = false;
    if (s->tokens != NULL) {
        return options_ids("--tokens", s->tokens, ids, n, error);
    }
    if (s->raw || !ellm_model_has_chat_template(e->model)) {
        return engine_encode(e, s->prompt, strlen(s->prompt), true, ids, n, error);
    }
    *templated = true;
    conversation c = {0};
    size_t n_dropped;
    if (s->system != NULL) {
        conversation_system(&c, s->system, strlen(s->system));
    }
    conversation_ask(&c, s->prompt, strlen(s->prompt));
    ellm_status status = conversation_prompt(&c, e, 0, ids, n, &n_dropped, error);
    conversation_free(&c);
    return status;
}

/* Every position's logits, computed `step` tokens at a time. */
static ellm_status write_logits(engine *e, const int32_t *ids, size_t n, size_t step, const char *path,
                                ellm_error *error) {
    size_t vocab = (size_t)e->info.vocab_size;
    if (n > (size_t)e->context_length) {
        return ellm_fail(error, ELLM_CONTEXT_FULL, "%zu tokens do not fit the context of %d; raise --context", n,
                         (int)e->context_length);
    }
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        return ellm_fail(error, ELLM_IO, "%s: %s", path, strerror(errno));
    }
    float *logits = calloc(step * vocab, sizeof *logits);
    if (logits == NULL) {
        fclose(file);
        return ellm_fail(error, ELLM_NO_MEMORY, "logits of %zu rows", step);
    }
    ellm_status status = ELLM_OK;
    for (size_t done = 0; status == ELLM_OK && done < n;) {
        ellm_row rows[most_rows];
        size_t count = n - done < step ? n - done : step;
        for (size_t i = 0; i < count; i++) {
            rows[i] = (ellm_row){.token = ids[done + i], .position = (int32_t)(done + i), .wants_logits = true};
        }
        status = ellm_context_eval(e->context, rows, count, logits);
        if (status != ELLM_OK) {
            ellm_fail(error, status, "tokens %zu to %zu: %s", done, done + count - 1, ellm_status_text(status));
        } else if (fwrite(logits, sizeof *logits * vocab, count, file) != count) {
            status = ellm_fail(error, ELLM_IO, "%s: %s", path, strerror(errno));
        }
        done += count;
    }
    if (fclose(file) != 0 && status == ELLM_OK) {
        status = ellm_fail(error, ELLM_IO, "%s: %s", path, strerror(errno));
    }
    free(logits);
    ellm_session_truncate(e->context, 0, 0);
    return status;
}

typedef struct printer {
    buffer text; /* the whole answer */
    bool streams;
} printer;

static ellm_status print_text(void *user, const char *text, size_t n_bytes, ellm_error *error) {
    printer *p = user;
    buffer_put(&p->text, text, n_bytes);
    return p->streams ? output_write(text, n_bytes, error) : ELLM_OK;
}

static double per_second(size_t n, double ms) {
    return ms > 0 ? (double)n * 1e3 / ms : 0;
}

static ellm_status print_json(const engine *e, const answer_request *r, const answer *a, const printer *p,
                              ellm_error *error) {
    buffer json = {0};
    buffer_put(&json, "{\"text\":", 8);
    buffer_put_json(&json, p->text.data, p->text.n);
    buffer_put(&json, ",\"ids\":", 7);
    buffer_put_ids(&json, a->ids, a->n_ids);
    buffer_put(&json, ",\"prompt_ids\":", 14);
    buffer_put_ids(&json, r->prompt, r->n_prompt);
    buffer_print(&json,
                 ",\"reason\":\"%s\",\"prompt_tokens\":%zu,\"reused_tokens\":%zu,\"tokens\":%zu,\"seed\":%llu,"
                 "\"threads\":%d,\"threads_"
                 "decode\":%d,\"load_ms\":%.3f,"
                 "\"prefill_ms\":%.3f,\"ttft_ms\":%.3f,\"decode_ms\":%.3f,\"guessed\":%llu,\"accepted\":%llu}\n",
                 a->reason, r->n_prompt, a->n_reused, a->n_ids, (unsigned long long)r->sampling.seed,
                 (int)engine_threads_prefill(e), (int)engine_threads_decode(e), e->load_ms, a->prefill_ms,
                 a->first_token_ms, a->decode_ms, (unsigned long long)a->lookup.n_guessed,
                 (unsigned long long)a->lookup.n_accepted);
    ellm_status status = output_write(json.data, json.n, error);
    buffer_free(&json);
    return status;
}

static ellm_status answer_prompt(const settings *s, engine *e, const answer_request *request, printer *p,
                                 ellm_error *error) {
    answer a;
    ellm_status status = engine_answer(e, request, &a, error);
    if (p->streams && p->text.n > 0 && p->text.data[p->text.n - 1] != '\n') {
        (void)output_write("\n", 1, NULL);
    }
    if (status == ELLM_OK && s->json) {
        status = print_json(e, request, &a, p, error);
    } else if (status == ELLM_OK) {
        char guesses[64];
        fprintf(stderr, "%zu tokens, %.1f tok/s%s; prompt %zu tokens in %.2f s, %.1f tok/s; loaded in %.2f s%s\n",
                a.n_ids, per_second(a.n_ids, a.decode_ms), answer_guesses(&a, guesses, sizeof guesses),
                request->n_prompt, a.prefill_ms / 1e3, per_second(request->n_prompt, a.prefill_ms), e->load_ms / 1e3,
                a.context_full ? "; the context is full (--context)" : "");
    }
    if (status == ELLM_OK && strcmp(a.reason, "cancelled") == 0) {
        status = ellm_fail(error, ELLM_CANCELLED, "stopped after %zu tokens", a.n_ids);
    }
    free(a.ids);
    return status;
}

ellm_status run_main(const settings *s, ellm_error *error) {
    if ((s->prompt == NULL) == (s->tokens == NULL)) {
        return ellm_fail(error, ELLM_USAGE, "say what to answer with -p TEXT, or what to continue with --tokens 1,2,3");
    }
    if (s->system != NULL && (s->raw || s->tokens != NULL)) {
        return ellm_fail(error, ELLM_USAGE, "--system needs the chat template: not with --raw or --tokens");
    }
    interrupts_catch();
    engine e;
    int32_t *ids = NULL;
    size_t n = 0;
    bool templated;
    printer p = {.streams = !s->json};
    ellm_status status = engine_open(&e, s, ELLM_LOOKUP_AUTO, error);
    if (status == ELLM_OK) {
        status = make_prompt(s, &e, &templated, &ids, &n, error);
    }
    if (status == ELLM_OK && s->system != NULL && !templated) {
        status = ellm_fail(error, ELLM_USAGE, "--system: this model has no chat template");
    }
    if (status == ELLM_OK && s->logits != NULL) {
        status = write_logits(&e, ids, n, s->step > 0 ? (size_t)s->step : usual_rows, s->logits, error);
    }
    if (status == ELLM_OK && (s->logits == NULL || s->n_tokens > 0)) {
        answer_request request = {.prompt = ids,
                                  .n_prompt = n,
                                  .most_tokens = s->n_tokens,
                                  .sampling = engine_sampling(&e, s),
                                  .stops = s->stops,
                                  .n_stops = s->n_stops,
                                  .text = print_text,
                                  .user = &p};
        status = answer_prompt(s, &e, &request, &p, error);
    }
    buffer_free(&p.text);
    free(ids);
    engine_close(&e);
    return status;
}
