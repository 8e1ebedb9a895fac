/* metrics.h: counts for Prometheus, in its text format. */
#ifndef EDGELLM_RT_METRICS_H
#define EDGELLM_RT_METRICS_H

#include "batch.h"

enum { METRIC_ROUTES = 24, METRIC_STATUSES = 20, METRIC_BUCKETS = 12 };

typedef struct metric_histogram {
    uint64_t counts[METRIC_BUCKETS + 1]; /* per bucket; the last is everything above */
    double sum;
} metric_histogram;

typedef struct metrics {
    struct {
        const char *route; /* static text */
        int status;
        uint64_t n;
    } requests[METRIC_ROUTES * METRIC_STATUSES];
    int n_requests;
    uint64_t n_connections, n_refused, n_aborted; /* connections: accepted, refused; exchanges whose client went */
    int n_open;
    metric_histogram first_token_s, answer_s, token_s;
} metrics;

void metrics_count(metrics *m, const char *route, int status);
/* An answer that was computed to its end. */
void metrics_answer(metrics *m, const batch_news *news);
void metrics_put(const metrics *m, const batch_stats *stats, buffer *b);

#endif
