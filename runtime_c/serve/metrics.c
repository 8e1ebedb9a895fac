#include "posix.h"

#include "metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double bounds_s[METRIC_BUCKETS] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60};

void metrics_count(metrics *m, const char *route, int status) {
    int i = 0;
    while (i < m->n_requests && (m->requests[i].status != status || strcmp(m->requests[i].route, route) != 0)) {
        i++;
    }
    if (i == METRIC_ROUTES * METRIC_STATUSES) {
        return;
    }
    if (i == m->n_requests) {
        m->n_requests++;
        m->requests[i].route = route;
        m->requests[i].status = status;
    }
    m->requests[i].n++;
}

static void observe(metric_histogram *h, double seconds) {
    int i = 0;
    while (i < METRIC_BUCKETS && seconds > bounds_s[i]) {
        i++;
    }
    h->counts[i]++;
    h->sum += seconds;
}

void metrics_answer(metrics *m, const batch_news *news) {
    const generation_times *t = &news->times;
    if (news->reason == ENDED_FAILED || news->n_tokens == 0) {
        return;
    }
    observe(&m->first_token_s, (t->first - t->submitted) / 1e3);
    observe(&m->answer_s, (t->ended - t->submitted) / 1e3);
    if (news->n_tokens > 1) {
        observe(&m->token_s, (t->ended - t->first) / 1e3 / (double)(news->n_tokens - 1));
    }
}

static void put_header(buffer *b, const char *name, const char *kind, const char *help) {
    buffer_print(b, "# HELP edgellm_%s %s\n# TYPE edgellm_%s %s\n", name, help, name, kind);
}

static void put_histogram(buffer *b, const char *name, const char *help, const metric_histogram *h) {
    uint64_t sum = 0;
    put_header(b, name, "histogram", help);
    for (int i = 0; i < METRIC_BUCKETS; i++) {
        sum += h->counts[i];
        buffer_print(b, "edgellm_%s_bucket{le=\"%g\"} %" PRIu64 "\n", name, bounds_s[i], sum);
    }
    sum += h->counts[METRIC_BUCKETS];
    buffer_print(b, "edgellm_%s_bucket{le=\"+Inf\"} %" PRIu64 "\nedgellm_%s_sum %.6f\nedgellm_%s_count %" PRIu64 "\n",
                 name, sum, name, h->sum, name, sum);
}

/* Resident bytes of this process, 0 where /proc says nothing. */
static double resident_bytes(void) {
    FILE *file = fopen("/proc/self/statm", "re");
    unsigned long long size = 0, resident = 0;
    char text[128] = "";
    if (file != NULL) {
        if (fgets(text, sizeof text, file) != NULL) {
            char *end = text;
            size = strtoull(text, &end, 10);
            resident = strtoull(end, NULL, 10);
        }
        fclose(file);
    }
    (void)size;
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

/* Name and help of each of `values` below. What ends in _total is a counter. */
static const char numbers[] = "connections\0Connections open now.\0"
                              "connections_total\0Connections accepted.\0"
                              "connections_refused_total\0Connections beyond the limit.\0"
                              "aborted_total\0Requests whose client went before the end.\0"
                              "sessions\0Answers that can be under way at a time.\0"
                              "running\0Answers under way.\0"
                              "waiting\0Answers that wait for a session.\0"
                              "answers_total\0Answers computed to their end.\0"
                              "answers_failed_total\0... of them failed.\0"
                              "answers_dropped_total\0Answers given up because nobody waits.\0"
                              "prompt_tokens_total\0Tokens of prompts.\0"
                              "prompt_tokens_reused_total\0... of them kept or shared, not computed.\0"
                              "tokens_total\0Tokens of answers.\0"
                              "steps_total\0Steps computed; one reads the weights once.\0"
                              "rows_total\0Rows of those steps: tokens of prompts and of answers.\0"
                              "computing_seconds_total\0Time spent in steps.\0"
                              "resident_bytes\0Memory of the process that is in use.";

void metrics_put(const metrics *m, const batch_stats *s, buffer *b) {
    const double values[] = {
        m->n_open,
        (double)m->n_connections,
        (double)m->n_refused,
        (double)m->n_aborted,
        s->n_sessions,
        s->n_running,
        s->n_waiting,
        (double)s->n_answers,
        (double)s->n_failed,
        (double)s->n_dropped,
        (double)s->n_prompt_tokens,
        (double)s->n_reused_tokens,
        (double)s->n_tokens,
        (double)s->n_steps,
        (double)s->n_rows,
        s->computing_ms / 1e3,
        resident_bytes(),
    };
    put_header(b, "requests_total", "counter", "HTTP requests answered, by route and status.");
    for (int i = 0; i < m->n_requests; i++) {
        buffer_print(b, "edgellm_requests_total{route=\"%s\",status=\"%d\"} %" PRIu64 "\n", m->requests[i].route,
                     m->requests[i].status, m->requests[i].n);
    }
    const char *name = numbers;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        const char *help = name + strlen(name) + 1;
        put_header(b, name, strcmp(help - sizeof "_total", "_total") == 0 ? "counter" : "gauge", help);
        buffer_print(b, "edgellm_%s %.15g\n", name, values[i]);
        name = help + strlen(help) + 1;
    }
    put_histogram(b, "first_token_seconds", "From request to first token.", &m->first_token_s);
    put_histogram(b, "answer_seconds", "From request to last token.", &m->answer_s);
    put_histogram(b, "token_seconds", "Time per token after the first.", &m->token_s);
}
