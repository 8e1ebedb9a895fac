#include "posix.h"

#include "api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats.h"
#include "page.h"
#include "program.h"

/* ---- routes ---- */

typedef enum route_id {
    AT_ROOT,
    AT_HEALTH,
    AT_METRICS,
    AT_VERSION,
    AT_BOARD,
    AT_MODELS,
    AT_MODEL,
    AT_CHAT,
    AT_TEXT,
    AT_TAGS,
    AT_PS,
    AT_SHOW,
    AT_PULL,
    AT_OLLAMA_CHAT,
    AT_OLLAMA_TEXT,
    AT_EMBED, /* these three in the order of api_kind */
    AT_OLLAMA_EMBED,
    AT_OLLAMA_EMBEDDINGS,
    AT_ABSENT,
} route_id;

typedef struct route {
    char path[21];
    uint8_t id; /* route_id */
    bool posts; /* POST; else GET and HEAD */
    bool open;  /* answered without the token */
} route;

/* Paths that clients know and that mean nothing on a board are AT_ABSENT: they get a better error than 404. */
static const route routes[] = {
    {"/", AT_ROOT, false, true},
    {"/health", AT_HEALTH, false, true},
    {"/metrics", AT_METRICS, false, false},
    {"/v1/models", AT_MODELS, false, false},
    {"/v1/models/", AT_MODEL, false, false}, /* and what follows */
    {"/v1/chat/completions", AT_CHAT, true, false},
    {"/v1/completions", AT_TEXT, true, false},
    {"/v1/embeddings", AT_EMBED, true, false},
    {"/api/version", AT_VERSION, false, true},
    {"/api/board", AT_BOARD, false, false},
    {"/api/tags", AT_TAGS, false, false},
    {"/api/ps", AT_PS, false, false},
    {"/api/show", AT_SHOW, true, false},
    {"/api/pull", AT_PULL, true, false},
    {"/api/chat", AT_OLLAMA_CHAT, true, false},
    {"/api/generate", AT_OLLAMA_TEXT, true, false},
    {"/api/embed", AT_OLLAMA_EMBED, true, false},
    {"/api/embeddings", AT_OLLAMA_EMBEDDINGS, true, false},
    {"/api/create", AT_ABSENT, true, false},
    {"/api/copy", AT_ABSENT, true, false},
    {"/api/push", AT_ABSENT, true, false},
};
enum { n_routes = sizeof routes / sizeof *routes };

static const route *find_route(const char *path) {
    for (size_t i = 0; i < n_routes; i++) {
        const char *known = routes[i].path;
        if (strcmp(path, known) == 0 || (routes[i].id == AT_MODEL && strncmp(path, known, strlen(known)) == 0)) {
            return &routes[i];
        }
    }
    return NULL;
}

const char *api_route(const http_request *request, bool *is_open) {
    const route *found = find_route(request->path);
    *is_open = found != NULL && found->open;
    return found != NULL ? found->path : "other";
}

void api_fail(reply *r, const char *path, int status, const char *text) {
    if (strncmp(path, "/api/", 5) == 0) {
        ollama_fail(r, status, text);
    } else {
        openai_fail(r, status, NULL, status == 401 ? "invalid_api_key" : NULL, text);
    }
}

static void put_health(service *s, reply *r) {
    batch_stats stats;
    buffer b = {0};
    batch_get_stats(s->batch, STUCK_MS, &stats);
    bool good = !stats.is_stuck && !s->is_stopping;
    buffer_print(&b, "{\"status\":\"%s\",\"model\":", s->is_stopping ? "stopping" : good ? "ok" : "stuck");
    buffer_put_json(&b, s->name, strlen(s->name));
    buffer_print(&b, ",\"sha256\":\"%s\",\"sessions\":%d,\"running\":%d,\"waiting\":%d}", s->sha256,
                 (int)stats.n_sessions, (int)stats.n_running, (int)stats.n_waiting);
    reply_json(r, good ? 200 : 503, &b);
}

static void put_metrics(service *s, reply *r) {
    batch_stats stats;
    buffer b = {0};
    batch_get_stats(s->batch, STUCK_MS, &stats);
    metrics_put(&s->metrics, &stats, &b);
    reply_put(r, 200, "text/plain; version=0.0.4; charset=utf-8", "", b.data, b.n);
    buffer_free(&b);
}

static void put_board(service *s, reply *r) {
    buffer b = {0};
    if (s->sensors.read_at <= 0 || clock_ms() - s->sensors.read_at > SENSORS_MS) {
        sensors_read(&s->sensors, "");
    }
    sensors_put(&s->sensors, &b);
    reply_put(r, 200, "application/json", "Cache-Control: no-store\r\n", b.data, b.n);
    buffer_free(&b);
}

static void put_version(reply *r) {
    static const char text[] = "{\"version\":\"" RT_VERSION "\"}";
    reply_put(r, 200, "application/json", "", text, sizeof text - 1);
}

/* /api/show and /api/pull: about a model by name. */
static void answer_about(parsing *p, route_id id, reply *r) {
    const char *key = member(p->body, "model") != NULL ? "model" : "name"; /* its older name */
    bool stream = true;
    if (member(p->body, key) == NULL) {
        parsing_note(p, 400, key, "'model' is missing");
    } else if (parse_model(p, key) && parse_bool(p, p->body, "stream", &stream)) {
        if (id == AT_SHOW) {
            ollama_show(p->service, r);
        } else {
            ollama_pull(r, stream);
        }
    } else if (id == AT_PULL && p->status == 404) {
        size_t n = strlen(p->text);
        snprintf(p->text + n, sizeof p->text - n, "; compile and deploy another one with `edgellm deploy`");
    }
}

static exchange *answer_post(service *s, route_id id, const char *path, const char *body, size_t n_body, reply *r) {
    parsing p;
    exchange *e = NULL;
    if (parsing_open(&p, s, body, n_body)) {
        switch (id) {
        case AT_CHAT: e = openai_chat(&p); break;
        case AT_TEXT: e = openai_text(&p); break;
        case AT_OLLAMA_CHAT: e = ollama_chat(&p, r); break;
        case AT_OLLAMA_TEXT: e = ollama_text(&p, r); break;
        case AT_EMBED:
        case AT_OLLAMA_EMBED:
        case AT_OLLAMA_EMBEDDINGS: e = embed_begin(&p, (api_kind)(OPENAI_EMBED + (id - AT_EMBED))); break;
        default: answer_about(&p, id, r); break;
        }
    }
    if (p.status != 0 && strncmp(path, "/api/", 5) == 0) {
        ollama_fail(r, p.status, p.text);
    } else if (p.status != 0) {
        openai_fail(r, p.status, p.param, p.code, p.text);
    }
    parsing_free(&p);
    return e;
}

exchange *api_handle(service *s, const http_request *request, const char *body, size_t n_body, reply *r) {
    const char *path = request->path;
    const route *found = find_route(path);
    bool reads = request->method == HTTP_GET || request->method == HTTP_HEAD;
    if (found == NULL) {
        api_fail(r, path, 404, "there is nothing here; /v1/chat/completions, /api/chat, /health and /metrics are");
    } else if (found->id == AT_ABSENT) {
        api_fail(r, path, 501, "models come to a board by `edgellm deploy`");
    } else if (found->posts ? request->method != HTTP_POST : !reads) {
        r->allow = found->posts ? "Allow: POST\r\n" : "Allow: GET, HEAD\r\n";
        api_fail(r, path, 405, found->posts ? "this wants POST" : "this wants GET");
    } else {
        switch (found->id) {
        case AT_ROOT: page_put(r, request); break;
        case AT_BOARD: put_board(s, r); break;
        case AT_HEALTH: put_health(s, r); break;
        case AT_METRICS: put_metrics(s, r); break;
        case AT_VERSION: put_version(r); break;
        case AT_MODELS: openai_models(s, r, NULL); break;
        case AT_MODEL: openai_models(s, r, path + strlen(found->path)); break;
        case AT_TAGS:
        case AT_PS: ollama_models(s, found->id == AT_PS, r); break;
        default: return answer_post(s, found->id, path, body, n_body, r);
        }
    }
    return NULL;
}

/* ---- exchanges ---- */

typedef struct format {
    void (*call)(choice *c, const char *name, size_t n_name, const ellm_json *arguments);
    void (*delta)(choice *c, int index, bool ended, reply *r);
    void (*whole)(exchange *e, reply *r);
    void (*finish)(exchange *e, reply *r);
    const char *type, *path; /* of a stream; whose errors */
} format;

static const format *format_of(api_kind kind) {
    static const format openai = {openai_call, openai_delta, openai_whole, openai_finish, "text/event-stream", "/v1/"};
    static const format ollama = {ollama_call,   ollama_delta,           ollama_whole,
                                  ollama_finish, "application/x-ndjson", "/api/"};
    return kind <= OPENAI_EMBED ? &openai : &ollama;
}

static void keep_text(void *user, const char *text, size_t n_bytes) {
    choice *c = user;
    buffer_put(&c->text, text, n_bytes);
}

static void keep_call(void *user, const char *name, size_t n_name, const ellm_json *arguments) {
    choice *c = user;
    format_of(c->exchange->kind)->call(c, name, n_name, arguments);
}

/* An answer failed. In a stream whose head is gone, an error is one more piece. */
static bool fail(exchange *e, const choice *c, reply *r) {
    const format *f = format_of(e->kind);
    const char *text = ellm_status_text(c->news.failed);
    bool is_mine = c->news.failed != ELLM_USAGE && c->news.failed != ELLM_TOKEN_RANGE
                   && c->news.failed != ELLM_GRAMMAR_LIMIT && c->news.failed != ELLM_GRAMMAR_STUCK;
    if (!r->is_stream) {
        api_fail(r, f->path, c->news.failed == ELLM_CANCELLED ? 503 : is_mine ? 500 : 400, text);
        return true;
    }
    buffer b = {0};
    bool is_openai = f->path[1] == 'v';
    buffer_print(&b, is_openai ? "data: {\"error\":{\"message\":" : "{\"error\":");
    buffer_put_json(&b, text, strlen(text));
    buffer_print(&b, is_openai ? ",\"type\":\"server_error\",\"param\":null,\"code\":null}}\n\n" : "}\n");
    reply_piece(r, b.data, b.n);
    buffer_free(&b);
    reply_end(r);
    return true;
}

/* Brings a choice up to date. True if it has something to say. */
static bool refresh(choice *c) {
    exchange *e = c->exchange;
    buffer text = {0};
    c->tools.text = keep_text;
    c->tools.call = keep_call;
    c->tools.user = c;
    batch_take(e->service->batch, c->answer, &text, &c->notes, &c->news);
    tool_reader_push(&c->tools, text.n > 0 ? text.data : "", text.n);
    buffer_free(&text);
    c->has_ended = c->news.reason != GENERATING;
    if (c->has_ended) {
        tool_reader_end(&c->tools);
        metrics_answer(&e->service->metrics, &c->news);
    }
    return c->text.n > 0 || c->calls.n > 0 || c->has_ended;
}

bool exchange_advance(exchange *e, reply *r) {
    const format *f = format_of(e->kind);
    int n_ended = 0;
    for (int i = 0; i < e->n_choices; i++) {
        choice *c = &e->choices[i];
        bool has_news = !c->has_ended && refresh(c);
        n_ended += c->has_ended;
        if (has_news && c->news.reason == ENDED_FAILED) {
            return fail(e, c, r);
        }
        if (has_news && e->stream) {
            if (!r->is_stream) {
                reply_begin(r, f->type);
            }
            if (c->text.n > 0 || c->calls.n > 0 || c->notes.n > 0) {
                f->delta(c, i, false, r);
                buffer_clear(&c->text);
                buffer_clear(&c->calls);
            }
            if (c->has_ended) { /* clients expect the end to say nothing else */
                f->delta(c, i, true, r);
            }
        }
    }
    if (n_ended < e->n_choices) {
        return false;
    }
    if (e->stream) {
        f->finish(e, r);
        reply_end(r);
    } else if (e->choices[0].answer->n_ends > 0) {
        embed_whole(e, r);
    } else {
        f->whole(e, r);
    }
    return true;
}

void exchange_free(exchange *e) {
    if (e == NULL) {
        return;
    }
    for (int i = 0; i < e->n_choices; i++) {
        choice *c = &e->choices[i];
        batch_drop(e->service->batch, c->answer);
        buffer_free(&c->text);
        buffer_free(&c->calls);
        buffer_free(&c->notes);
        buffer_free(&c->tools.held);
    }
    free(e);
}
