#include "posix.h"

#include "batch.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "program.h"

enum {
    mixed_rows = 32, /* all rows of a step that somebody waits for */
    none = -2,       /* no session, and not ELLM_PREFIX either */
};

/* A session of the context, and who has it. */
typedef struct seat {
    generation *who; /* NULL: free */
    bool is_dropped;
    int32_t *held;                /* tokens of the session's positions, (context_length,); they outlive the answer */
    int32_t n_held, n_done, next; /* n_done: of the prompt's tokens; next: the token to compute after the prompt */
    uint64_t used;                /* when it was last given away: a count */
} seat;

struct batch {
    ellm_context *context;
    const ellm_model *model;
    int32_t context_length, vocab;
    size_t step_rows; /* of prompts, while nobody waits for his next token */
    batch_options options;
    seat *seats;
    float *logits;  /* (sessions, vocab) */
    ellm_row *rows; /* of a step: at most step_rows + sessions */
    int32_t turn;   /* whose prompt comes first in the next step */
    uint64_t n_given, n_requests;

    pthread_t thread;
    bool has_thread;
    pthread_mutex_t lock; /* guards what follows, the seats' who and is_dropped, and what batch_take reads */
    pthread_cond_t work;
    generation **waiting; /* in the order they came */
    int32_t n_waiting, waiting_cap;
    bool stops;
    double step_began; /* clock_ms, 0: none runs */
    batch_stats stats;
};

/* ---- seats ---- */

/* How many of these tokens a prompt begins with; its last one's logits are wanted. */
static int32_t common_with(const int32_t *tokens, int32_t n_tokens, const generation *g) {
    int32_t n = 0, most = (int32_t)g->n_prompt - 1;
    while (n < most && n < n_tokens && tokens[n] == g->prompt[n]) {
        n++;
    }
    return n;
}

/* Positions of a seat's session that a prompt may keep. */
static int32_t common(const seat *s, const generation *g) {
    return common_with(s->held, s->n_held, g);
}

/* A free seat: one that holds the beginning of the prompt and little else, else the one that was free the longest. */
static seat *find_seat(const batch *b, const generation *g) {
    seat *best = NULL, *oldest = NULL;
    int32_t most = 0;
    for (int32_t i = 0; i < b->options.n_sessions; i++) {
        seat *s = &b->seats[i];
        if (s->who != NULL) {
            continue;
        }
        int32_t n = common(s, g);
        if (n > most && n >= s->n_held / 2) {
            most = n;
            best = s;
        }
        if (oldest == NULL || s->used < oldest->used) {
            oldest = s;
        }
    }
    return best != NULL ? best : oldest;
}

static int32_t next_waiting(const batch *b) {
    int32_t best = 0;
    for (int32_t i = 1; i < b->n_waiting; i++) {
        best = b->waiting[i]->turn < b->waiting[best]->turn ? i : best;
    }
    return best;
}

static void sit(batch *b, seat *s, generation *g) {
    int32_t slot = (int32_t)(s - b->seats), same = g->n_ends > 0 ? 0 : common(s, g);
    s->who = g;
    s->is_dropped = false;
    s->used = ++b->n_given;
    if (ellm_session_truncate(b->context, slot, same) != ELLM_OK) { /* a window shows what is gone: build it anew */
        same = 0;
        (void)ellm_session_truncate(b->context, slot, 0); /* always works */
    }
    s->n_held = s->n_done = same;
    g->n_reused = (size_t)same;
    g->times.begun = clock_ms();
    ellm_status status = g->n_ends > 0 ? ELLM_OK : generation_begin(g);
    if (status != ELLM_OK) {
        generation_fail(g, status);
        s->who = NULL;
    }
}

static void get_up(batch *b, seat *s) {
    generation *g = s->who;
    if (s->is_dropped) {
        b->stats.n_dropped++;
        generation_free(g);
    } else {
        b->stats.n_answers++;
        b->stats.n_failed += g->reason == ENDED_FAILED;
    }
    s->who = NULL;
}

static void give_seats(batch *b) {
    while (b->n_waiting > 0) {
        int32_t i = next_waiting(b);
        seat *s = find_seat(b, b->waiting[i]);
        if (s == NULL) {
            return;
        }
        generation *g = b->waiting[i];
        b->n_waiting--;
        memmove(b->waiting + i, b->waiting + i + 1, (size_t)(b->n_waiting - i) * sizeof(generation *));
        sit(b, s, g);
    }
}

/* ---- a step ---- */

static size_t put_row(batch *b, size_t n, seat *s, int32_t token, bool wants_logits) {
    s->held[s->n_held] = token;
    b->rows[n] = (ellm_row){
        .token = token, .position = s->n_held++, .slot = (int32_t)(s - b->seats), .wants_logits = wants_logits};
    return n + 1;
}

/* Takes over what another session, or the bundle, holds of the prompt, and this one does not: the answers to one prompt
 * compute it once between them. */
static void share(batch *b, seat *s, generation *who) {
    const int32_t *shipped;
    int32_t n_shipped = (int32_t)ellm_model_prefix_tokens(who->model, &shipped);
    int32_t ready = common_with(shipped, n_shipped, who), most = ready > s->n_done ? ready : s->n_done;
    int32_t source = ready > s->n_done ? ELLM_PREFIX : none;
    for (int32_t i = 0; i < b->options.n_sessions; i++) {
        int32_t n = &b->seats[i] == s ? 0 : common(&b->seats[i], who), there = ellm_session_length(b->context, i);
        n = n < there ? n : there; /* the rest is about to be computed */
        if (n > most) {
            most = n;
            source = i;
        }
    }
    if (source == none) {
        return;
    }
    /* Where a window has closed over it, the prompt is computed. */
    if (ellm_session_share(b->context, source, (int32_t)(s - b->seats), most) == ELLM_OK) {
        memcpy(s->held + s->n_done, who->prompt + s->n_done, (size_t)(most - s->n_done) * sizeof *s->held);
        who->n_reused += (size_t)(most - s->n_done);
        s->n_held = s->n_done = most;
    }
}

/* The rows of the next step. Prompts take turns in coming first, so that a long one holds up nobody for long. */
static size_t gather(batch *b) {
    size_t n = 0;
    int32_t n_seats = b->options.n_sessions, first = -1;
    for (int32_t i = 0; i < n_seats; i++) {
        seat *s = &b->seats[i];
        if (s->who != NULL && s->who->n_ends == 0 && s->n_done == (int32_t)s->who->n_prompt) {
            n = put_row(b, n, s, s->next, true);
        }
    }
    size_t most = n == 0 ? b->step_rows : n < mixed_rows / 2 ? mixed_rows : n + mixed_rows / 2;
    for (int32_t k = 0; k < n_seats && n < most; k++) {
        int32_t i = (b->turn + k) % n_seats;
        seat *s = &b->seats[i];
        int32_t n_prompt = s->who != NULL && s->who->n_ends == 0 ? (int32_t)s->who->n_prompt : 0;
        if (s->who != NULL && s->n_done < n_prompt) {
            share(b, s, s->who);
        }
        for (; n < most && s->n_done < n_prompt && s->who != NULL; s->n_done++) {
            n = put_row(b, n, s, s->who->prompt[s->n_done], s->n_done + 1 == n_prompt);
            first = first < 0 ? i : first;
        }
    }
    b->turn = first < 0 ? b->turn : (first + 1) % n_seats;
    return n;
}

static void fail_all(batch *b, ellm_status status) {
    for (int32_t i = 0; i < b->options.n_sessions; i++) {
        seat *s = &b->seats[i];
        (void)ellm_session_truncate(b->context, i, 0);
        s->n_held = 0;
        if (s->who != NULL) {
            generation_fail(s->who, status);
            get_up(b, s);
        }
    }
}

/* Picks the tokens of the rows that have logits. Without the lock: nobody else looks at sampler and stream. */
static void pick(batch *b, size_t n_rows, int32_t *tokens) {
    float *logits = b->logits;
    for (size_t i = 0; i < n_rows; i++) {
        if (b->rows[i].wants_logits) {
            seat *s = &b->seats[b->rows[i].slot];
            tokens[b->rows[i].slot] = generation_pick(s->who, logits);
            logits += b->vocab;
        }
    }
}

static void publish(batch *b, size_t n_rows, const int32_t *tokens) {
    for (size_t i = 0; i < n_rows; i++) {
        seat *s = &b->seats[b->rows[i].slot];
        if (!b->rows[i].wants_logits || s->is_dropped) {
            continue;
        }
        s->next = tokens[b->rows[i].slot];
        if (s->n_done == (int32_t)s->who->n_prompt && s->who->n_tokens == 0) {
            b->stats.n_prompt_tokens += s->who->n_prompt;
            b->stats.n_reused_tokens += s->who->n_reused;
        }
        generation_push(s->who, s->next, s->n_held == b->context_length);
        b->stats.n_tokens++;
        if (s->who->reason != GENERATING) {
            get_up(b, s);
        }
    }
}

static void wake(const batch *b) {
    const uint64_t one = 1;
    (void)!write(b->options.wake, &one, sizeof one); /* full: it is awake */
}

/* The lock is free between these two, while a step runs. */
static void begin_step(batch *b) {
    b->step_began = clock_ms();
    pthread_mutex_unlock(&b->lock);
}

static void end_step(batch *b, size_t n_rows) {
    pthread_mutex_lock(&b->lock);
    b->stats.n_steps++;
    b->stats.n_rows += n_rows;
    b->stats.computing_ms += clock_ms() - b->step_began;
    b->step_began = 0;
}

/* With the lock. */
static void run_step(batch *b, size_t n_rows, int32_t *tokens) {
    begin_step(b);
    ellm_status status = ellm_context_eval(b->context, b->rows, n_rows, b->logits);
    if (status == ELLM_OK) {
        pick(b, n_rows, tokens);
    }
    end_step(b, n_rows);
    if (status == ELLM_OK) {
        publish(b, n_rows, tokens);
    } else if (!b->stops) { /* otherwise it was cancelled by batch_close, which frees who still sits */
        fail_all(b, status);
    }
    wake(b);
}

/* A piece of an embedding, between the steps of the answers. Its session holds nothing that others could share. With the
 * lock, as run_step. */
static bool embed_piece(batch *b) {
    seat *s = NULL;
    for (int32_t i = 0; i < b->options.n_sessions; i++) {
        seat *other = &b->seats[i];
        s = other->who != NULL && other->who->n_ends > 0 && (s == NULL || other->used < s->used) ? other : s;
    }
    if (s == NULL) {
        return false;
    }
    generation *g = s->who;
    int32_t slot = (int32_t)(s - b->seats);
    size_t at = (size_t)s->n_done, left = g->ends[g->n_embedded] - at, n = left < b->step_rows ? left : b->step_rows;
    begin_step(b);
    if (at == 0 || at == g->ends[g->n_embedded > 0 ? g->n_embedded - 1 : 0]) {
        (void)ellm_session_truncate(b->context, slot, 0);
    }
    ellm_status status = ellm_session_embed(b->context, slot, g->prompt + at, n, g->sum);
    end_step(b, n);
    b->stats.n_prompt_tokens += n;
    s->n_done += (int32_t)n;
    s->used = ++b->n_given;
    if (status != ELLM_OK) {
        generation_fail(g, status);
    }
    if (status != ELLM_OK || (n == left && generation_embedded(g))) {
        (void)ellm_session_truncate(b->context, slot, 0);
        get_up(b, s);
    }
    wake(b);
    return true;
}

static void *compute(void *user) {
    batch *b = user;
    int32_t *tokens = calloc((size_t)b->options.n_sessions, sizeof *tokens);
    pthread_mutex_lock(&b->lock);
    while (!b->stops && tokens != NULL) {
        for (int32_t i = 0; i < b->options.n_sessions; i++) {
            if (b->seats[i].who != NULL && b->seats[i].is_dropped) {
                get_up(b, &b->seats[i]);
            }
        }
        give_seats(b);
        size_t n_rows = gather(b);
        if (n_rows > 0) {
            run_step(b, n_rows, tokens);
        }
        bool embeds = embed_piece(b);
        if (n_rows == 0 && !embeds) {
            wake(b); /* somebody may not have got further than his seat */
            pthread_cond_wait(&b->work, &b->lock);
        }
    }
    pthread_mutex_unlock(&b->lock);
    free(tokens);
    return NULL;
}

/* ---- files ---- */

/* What each session held when another batch ended, as far as it fits this bundle and context; or the other way round: a
 * session that cannot be kept leaves no file. */
static void keep_sessions(batch *b, bool loads) {
    for (int32_t i = 0; i < b->options.n_sessions && b->options.keep != NULL; i++) {
        buffer path = {0};
        buffer_print(&path, "%s/session-%d", b->options.keep, (int)i);
        seat *s = &b->seats[i];
        ellm_saved *saved = NULL;
        const int32_t *tokens;
        if (!loads && ellm_session_save(b->context, i, s->held, path.data, NULL, 0, NULL) != ELLM_OK) {
            unlink(path.data);
        } else if (loads && ellm_saved_open(b->model, path.data, &saved, NULL) == ELLM_OK
                   && ellm_session_restore(b->context, i, saved) == ELLM_OK) {
            s->n_held = (int32_t)ellm_saved_tokens(saved, &tokens);
            memcpy(s->held, tokens, (size_t)s->n_held * sizeof *tokens);
        }
        ellm_saved_close(saved);
        buffer_free(&path);
    }
}

/* ---- life ---- */

ellm_status batch_open(ellm_context *context, const ellm_model *model, const batch_options *options, batch **opened,
                       ellm_error *error) {
    ellm_model_info info;
    ellm_model_get_info(model, &info);
    size_t n = (size_t)options->n_sessions;
    batch *b = *opened = calloc(1, sizeof *b);
    if (b == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for the server");
    }
    b->context = context;
    b->model = model;
    b->options = *options;
    b->context_length = ellm_context_length(context);
    b->vocab = info.vocab_size;
    b->step_rows = (size_t)(info.step_rows > mixed_rows ? info.step_rows : mixed_rows);
    b->stats.n_sessions = options->n_sessions;
    b->waiting_cap = options->n_sessions + options->n_waiting;
    b->waiting = calloc((size_t)b->waiting_cap, sizeof(generation *));
    b->seats = calloc(n, sizeof *b->seats);
    b->rows = calloc(b->step_rows + n, sizeof *b->rows);
    b->logits = calloc(n * (size_t)b->vocab, sizeof *b->logits);
    bool good = b->waiting != NULL && b->seats != NULL && b->rows != NULL && b->logits != NULL;
    for (size_t i = 0; i < n && good; i++) {
        b->seats[i].held = calloc((size_t)b->context_length, sizeof *b->seats[i].held);
        good = b->seats[i].held != NULL;
    }
    if (good) {
        keep_sessions(b, true);
    }
    good = good && pthread_mutex_init(&b->lock, NULL) == 0 && pthread_cond_init(&b->work, NULL) == 0;
    b->has_thread = good && pthread_create(&b->thread, NULL, compute, b) == 0;
    return b->has_thread ? ELLM_OK : ellm_fail(error, ELLM_NO_MEMORY, "no memory for %zu sessions", n);
}

void batch_close(batch *b) {
    if (b == NULL) {
        return;
    }
    if (b->has_thread) {
        pthread_mutex_lock(&b->lock);
        b->stops = true;
        pthread_cond_signal(&b->work);
        pthread_mutex_unlock(&b->lock);
        ellm_context_cancel(b->context, true);
        pthread_join(b->thread, NULL);
        keep_sessions(b, false);
        pthread_cond_destroy(&b->work);
        pthread_mutex_destroy(&b->lock);
    }
    for (int32_t i = 0; i < b->n_waiting; i++) {
        generation_free(b->waiting[i]);
    }
    for (int32_t i = 0; b->seats != NULL && i < b->options.n_sessions; i++) {
        generation_free(b->seats[i].who);
        free(b->seats[i].held);
    }
    free(b->waiting);
    free(b->seats);
    free(b->rows);
    free(b->logits);
    free(b);
}

/* ---- the other thread's side ---- */

static int32_t n_running(const batch *b) {
    int32_t n = 0;
    for (int32_t i = 0; i < b->options.n_sessions; i++) {
        n += b->seats[i].who != NULL;
    }
    return n;
}

bool batch_submit(batch *b, generation *const *answers, size_t n) {
    pthread_mutex_lock(&b->lock);
    size_t taken = (size_t)n_running(b) + (size_t)b->n_waiting;
    bool fits = n <= (size_t)b->waiting_cap && taken + n <= (size_t)b->waiting_cap;
    for (size_t i = 0; i < n && fits; i++) {
        answers[i]->times.submitted = clock_ms();
        /* Further answers let as many others pass as may wait: one that wants many does not hold up those that want one,
         * and is not held up for ever. */
        answers[i]->turn = b->n_requests + i * (uint64_t)b->waiting_cap;
        b->waiting[b->n_waiting++] = answers[i];
    }
    b->n_requests += fits;
    pthread_cond_signal(&b->work);
    pthread_mutex_unlock(&b->lock);
    return fits;
}

void batch_take(batch *b, generation *g, buffer *text, buffer *notes, batch_news *news) {
    pthread_mutex_lock(&b->lock);
    buffer_put(text, g->text.data, g->text.n);
    buffer_put(notes, g->notes.data, g->notes.n);
    buffer_clear(&g->text);
    buffer_clear(&g->notes);
    *news = (batch_news){.reason = g->reason,
                         .failed = g->failed,
                         .n_prompt = g->n_prompt,
                         .n_reused = g->n_reused,
                         .n_tokens = g->n_tokens,
                         .times = g->times};
    pthread_mutex_unlock(&b->lock);
}

void batch_drop(batch *b, generation *g) {
    pthread_mutex_lock(&b->lock);
    bool is_seated = false;
    for (int32_t i = 0; i < b->options.n_sessions; i++) {
        if (b->seats[i].who == g) {
            is_seated = b->seats[i].is_dropped = true;
        }
    }
    for (int32_t i = 0; i < b->n_waiting; i++) {
        if (b->waiting[i] == g) {
            b->n_waiting--;
            memmove(b->waiting + i, b->waiting + i + 1, (size_t)(b->n_waiting - i) * sizeof(generation *));
            b->stats.n_dropped++;
        }
    }
    pthread_cond_signal(&b->work);
    pthread_mutex_unlock(&b->lock);
    if (!is_seated) {
        generation_free(g);
    }
}

void batch_get_stats(batch *b, double stuck_ms, batch_stats *stats) {
    pthread_mutex_lock(&b->lock);
    *stats = b->stats;
    stats->n_running = n_running(b);
    stats->n_waiting = b->n_waiting;
    stats->is_stuck = b->step_began > 0 && clock_ms() - b->step_began > stuck_ms;
    pthread_mutex_unlock(&b->lock);
}
