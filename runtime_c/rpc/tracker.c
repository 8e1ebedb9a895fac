#include "posix.h"

#include "tracker.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "error.h"
#include "socket.h"

enum { tracker_magic = 0x2f271, message_bytes = 1 << 16, answer_s = 5, most_missing = 3 };

static ellm_status fail(rpc_tracker *tracker, ellm_error *error, const char *what) {
    ellm_rpc_tracker_close(tracker);
    return ellm_fail(error, ELLM_IO, "tracker %s:%u: %s", tracker->host, (unsigned)tracker->port, what);
}

/* Sends a JSON text and reads the answer, which is cut at `cap`. */
static ellm_status ask(rpc_tracker *tracker, const char *question, char *answer, size_t cap, ellm_error *error) {
    int32_t n = (int32_t)strlen(question);
    rpc_span spans[2] = {{&n, sizeof n}, {question, (size_t)n}};
    if (!ellm_rpc_send(tracker->socket, spans) || !ellm_rpc_receive(tracker->socket, &n, sizeof n)) {
        return fail(tracker, error, "no answer");
    }
    if (n < 0 || (size_t)n >= cap) {
        return fail(tracker, error, "an answer that is too long");
    }
    if (!ellm_rpc_receive(tracker->socket, answer, (size_t)n)) {
        return fail(tracker, error, "half an answer");
    }
    answer[n] = '\0';
    return ELLM_OK;
}

static ellm_status connect_to(rpc_tracker *tracker, ellm_error *error) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(tracker->port)};
    struct timeval limit = {.tv_sec = answer_s};
    char question[512], answer[256];
    int32_t magic = tracker_magic;
    if (inet_pton(AF_INET, tracker->host, &address.sin_addr) != 1) {
        return fail(tracker, error, "an IPv4 address is wanted");
    }
    tracker->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (tracker->socket < 0) {
        return fail(tracker, error, strerror(errno));
    }
    setsockopt(tracker->socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(tracker->socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(tracker->socket, (struct sockaddr *)&address, sizeof address) != 0) {
        return fail(tracker, error, strerror(errno));
    }
    if (!ellm_rpc_send(tracker->socket, (rpc_span[2]){{&magic, sizeof magic}})
        || !ellm_rpc_receive(tracker->socket, &magic, sizeof magic) || magic != tracker_magic) {
        return fail(tracker, error, "that is no tracker");
    }
    snprintf(question, sizeof question, "[5, {\"key\": \"server:%s\", \"addr\": [\"127.0.0.1\", %u]}]", tracker->queue,
             (unsigned)tracker->own_port);
    return ask(tracker, question, answer, sizeof answer, error);
}

ellm_status ellm_rpc_tracker_offer(rpc_tracker *tracker, ellm_error *error) {
    uint64_t number[2];
    char question[1024], answer[256];
    ellm_status status = tracker->socket < 0 ? connect_to(tracker, error) : ELLM_OK;
    if (status != ELLM_OK) {
        return status;
    }
    if (getrandom(number, sizeof number, 0) != (ssize_t)sizeof number) {
        return fail(tracker, error, "no random numbers");
    }
    snprintf(tracker->key, sizeof tracker->key, "%s:%016llx%016llx", tracker->queue, (unsigned long long)number[0],
             (unsigned long long)number[1]);
    tracker->n_missing = 0;
    snprintf(question, sizeof question, "[3, \"%s\", [%u, \"%s\"], \"127.0.0.1\"]", tracker->queue,
             (unsigned)tracker->own_port, tracker->key);
    return ask(tracker, question, answer, sizeof answer, error);
}

ellm_status ellm_rpc_tracker_poll(rpc_tracker *tracker, bool *lost, ellm_error *error) {
    char answer[message_bytes];
    ellm_status status = ask(tracker, "[7]", answer, sizeof answer, error);
    *lost = false;
    if (status == ELLM_OK) {
        tracker->n_missing = strstr(answer, tracker->key) != NULL ? 0 : tracker->n_missing + 1;
        *lost = tracker->n_missing > most_missing;
    }
    return status;
}

void ellm_rpc_tracker_close(rpc_tracker *tracker) {
    if (tracker->socket >= 0) {
        close(tracker->socket);
        tracker->socket = -1;
    }
}
