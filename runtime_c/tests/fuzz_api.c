/* Fuzzes requests behind the HTTP reader: a path by the first byte, the rest is the body. They are answered from the toy
 * bundle, batch and all; answers are short, and some clients leave. What is said must be HTTP with a JSON body. */
#include "posix.h"

#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "api.h"
#include "toy.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static struct toy toy;
static service served;
static int wake;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    static char chat[1 << 16];
    ellm_error error;
    ellm_model *model = NULL;
    ellm_context *context = NULL;
    ellm_context_options options = {
        .n_sessions = 2, .context_length = 256, .n_threads_prefill = 1, .n_threads_decode = 1};
    toy_open(&toy, 0);
    toy_compile(&toy, toy_kernels, "-DWINDOW=0 -DADD==");
    toy_set(&toy, "chat.bin", chat, toy_read("tests/toy_chat.bin", chat, sizeof chat));
    toy_write(&toy);
    if (ellm_model_open(toy.directory, &model, &error) != ELLM_OK
        || ellm_context_open(model, &options, &context, &error) != ELLM_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(99);
    }
    toy_close(&toy); /* it is mapped */
    wake = eventfd(0, EFD_NONBLOCK);
    batch_options wants = {.n_sessions = 2, .n_waiting = 4, .wake = wake};
    served = (service){.model = model, .context_length = 256, .name = "toy", .sha256 = "0123456789abcdef"};
    ellm_model_get_info(model, &served.info);
    return batch_open(context, model, &wants, &served.batch, &error) == ELLM_OK ? 0 : 99;
}

static void wait_for_news(void) {
    struct pollfd file = {.fd = wake, .events = POLLIN};
    uint64_t count;
    poll(&file, 1, -1);
    (void)!read(wake, &count, sizeof count);
}

static void check_answer(const reply *r) {
    ellm_region region;
    ellm_json *value;
    if (r->status < 200 || r->out->n < 20 || memcmp(r->out->data, "HTTP/1.1 ", 9) != 0) {
        abort();
    }
    const char *body = strstr(r->out->data, "\r\n\r\n");
    if (body == NULL) {
        abort();
    }
    body += 4;
    ellm_region_init(&region, 64 << 20);
    size_t n = r->out->n - (size_t)(body - r->out->data);
    if (!r->is_stream && strstr(r->out->data, "application/json") != NULL
        && ellm_json_read(body, n, &region, ELLM_USAGE, "answer", &value, NULL) != ELLM_OK) {
        abort();
    }
    ellm_region_free(&region);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const char *const paths[] = {"/v1/chat/completions", "/v1/completions", "/api/chat",
                                        "/api/generate",        "/api/show",       "/api/pull",
                                        "/v1/embeddings",       "/api/embed"};
    if (n_bytes == 0) {
        return 0;
    }
    http_request request = {.method = HTTP_POST, .minor = 1};
    strcpy(request.path, paths[data[0] / 4 % 8]);
    buffer out = {0};
    reply r = {.out = &out, .has_chunks = (data[0] & 1) != 0, .keep_alive = true};
    exchange *e = api_handle(&served, &request, (const char *)data + 1, n_bytes - 1, &r);
    bool leaves = (data[0] & 2) != 0;
    if (e != NULL && !leaves) {
        while (!exchange_advance(e, &r)) {
            wait_for_news();
        }
    }
    if (e == NULL || !leaves) {
        check_answer(&r);
    }
    exchange_free(e);
    buffer_free(&out);
    return 0;
}
