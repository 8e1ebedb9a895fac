/* serve: the model as a server that programs talk to. */
#include "posix.h"

#include "program.h"

#ifdef ELLM_SERVE
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "buffer.h"
#include "device.h"
#include "file.h"
#include "form.h"
#include "json.h"
#include "model.h"
#include "serve.h"
#include "trust.h"

enum { default_port = 11434, default_sessions = 4, default_waiting = 32, default_grace_s = 10, most_token = 512 };

typedef struct host {
    service service;
    const settings *settings;
    ellm_model *model;
    ellm_context *context;
    int32_t n_sessions;
    char token[most_token + 2];
} host;

/* The first line of a file that nobody else may read. */
static ellm_status read_token(const char *path, char *token, ellm_error *error) {
    size_t n = 0;
    ellm_status status = ellm_key_file_read(path, 0077, token, most_token + 1, &n, error);
    if (status != ELLM_OK) {
        return status;
    }
    token[n] = '\0';
    token[strcspn(token, "\r\n")] = '\0';
    size_t length = strlen(token);
    for (size_t i = 0; i < length; i++) {
        if (token[i] <= ' ' || token[i] > '~') {
            return ellm_fail(error, ELLM_KEY_INVALID, "%s: the token has a character that no header can carry", path);
        }
    }
    if (length < SERVE_TOKEN_LEAST || length > most_token) {
        return ellm_fail(error, ELLM_KEY_INVALID,
                         "%s: its first line is the token, %d to %d characters; `openssl rand -hex 24` makes one", path,
                         (int)SERVE_TOKEN_LEAST, (int)most_token);
    }
    return ELLM_OK;
}

/* As many sessions as were asked for, else as fit: 4, 2, or 1. */
static ellm_status open_context(void *user, const settings *s, const ellm_model *model, bool real_gpu,
                                ellm_context **context, ellm_error *error) {
    host *h = user;
    int32_t threads = s->threads > 0 ? (int32_t)s->threads : 0, most = default_sessions;
    ellm_context_options options = {.context_length = s->context > 0 ? (int32_t)s->context : 0,
                                    .n_threads_prefill = threads,
                                    .n_threads_decode = s->threads_decode > 0 ? (int32_t)s->threads_decode : threads,
                                    .real_gpu = real_gpu};
    ellm_status status = ELLM_NO_MEMORY;
    for (h->n_sessions = s->sessions > 0 ? (int32_t)s->sessions : most; status == ELLM_NO_MEMORY; h->n_sessions /= 2) {
        options.n_sessions = h->n_sessions;
        status = ellm_context_open(model, &options, context, error);
        if (status != ELLM_NO_MEMORY || s->sessions > 0 || h->n_sessions == 1) {
            break;
        }
    }
    if (status == ELLM_OK && s->sessions <= 0 && h->n_sessions < most) {
        fprintf(stderr,
                "edgellm-rt: note: memory allows %d of %d sessions of %d positions; --context N shortens them\n",
                (int)h->n_sessions, (int)most, (int)ellm_context_length(*context));
    }
    return status;
}

static void describe(host *h) {
    service *v = &h->service;
    struct stat about;
    ellm_region region;
    ellm_json *manifest = NULL;
    int64_t parameters = 0;
    ellm_model_get_info(h->model, &v->info);
    v->model = h->model;
    v->context_length = ellm_context_length(h->context);
    v->sha256 = ellm_model_sha256(h->model);
    v->name = h->settings->name != NULL ? h->settings->name : v->info.name;
    ellm_region_init(&region, (size_t)64 << 20);
    if (ellm_json_read(v->info.manifest, v->info.manifest_bytes, &region, ELLM_BUNDLE_FORMAT, "manifest.json",
                       &manifest, NULL)
        == ELLM_OK) {
        (void)ellm_json_int(ellm_json_get(ellm_json_get(manifest, "model"), "parameters"), 0, INT64_MAX, &parameters);
    }
    ellm_region_free(&region);
    v->n_parameters = parameters;
    bool has_time = fstatat(ellm_model_directory(h->model), "manifest.json", &about, 0) == 0;
    v->created = has_time ? (int64_t)about.st_mtime : (int64_t)time(NULL);
}

static void print_ready(void *user, const char *address, uint16_t port) {
    const host *h = user;
    buffer line = {0};
    bool is_v6 = strchr(address, ':') != NULL;
    buffer_print(
        &line, "{\"type\":\"ready\",\"version\":\"" RT_VERSION "\",\"address\":\"%s\",\"port\":%u,\"pid\":%d,\"name\":",
        address, (unsigned)port, (int)getpid());
    buffer_put_json(&line, h->service.name, strlen(h->service.name));
    buffer_print(&line, ",\"sessions\":%d,\"context\":%d}\n", (int)h->n_sessions, (int)h->service.context_length);
    (void)output_write(line.data, line.n, NULL);
    if (isatty(STDERR_FILENO) != 0) {
        fprintf(stderr, "serving %s on http://%s%s%s:%u (Ctrl-C ends it)\n", h->service.name, is_v6 ? "[" : "", address,
                is_v6 ? "]" : "", (unsigned)port);
    }
    buffer_free(&line);
}

static ellm_status serve(host *h, ellm_error *error) {
    const settings *s = h->settings;
    serve_options options = {.address = s->listen,
                             .port = (uint16_t)(s->port >= 0 ? s->port : default_port),
                             .is_open = s->open,
                             .logs = s->log,
                             .is_attached = s->attached,
                             .keep = s->keep,
                             .grace_ms = (s->grace >= 0 ? s->grace : default_grace_s) * 1e3,
                             .n_sessions = h->n_sessions,
                             .n_waiting = (int32_t)(s->waiting >= 0 ? s->waiting : default_waiting),
                             .ready = print_ready,
                             .user = h};
    options.token = s->token_file != NULL ? h->token : NULL;
    signal(SIGPIPE, SIG_IGN);
    if (s->keep != NULL && mkdir(s->keep, 0700) != 0 && errno != EEXIST) {
        return ellm_fail(error, ELLM_IO, "--keep %.200s: %s", s->keep, strerror(errno));
    }
    return ellm_serve(&h->service, h->context, &options, error);
}

ellm_status serve_main(const settings *s, ellm_error *error) {
    host h = {.settings = s};
    trust t;
    ellm_status status = s->token_file != NULL ? read_token(s->token_file, h.token, error) : ELLM_OK;
    status = status != ELLM_OK ? status : trust_find(&t, error);
    status = status != ELLM_OK ? status : device_open(s, &t.files, open_context, &h, &h.model, &h.context, error);
    if (status == ELLM_OK) {
        ellm_model_info info;
        ellm_model_get_info(h.model, &info);
        trust_note(&info);
        describe(&h);
        status = serve(&h, error);
    }
    form_forget(&h.service);
    ellm_context_close(h.context);
    ellm_model_close(h.model);
    return status;
}
#else
ellm_status serve_main(const settings *s, ellm_error *error) {
    (void)s;
    return ellm_fail(error, ELLM_USAGE, "this edgellm-rt was built without its server");
}
#endif
