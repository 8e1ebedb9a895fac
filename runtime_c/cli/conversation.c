#include "posix.h"

#include "conversation.h"

#include <stdlib.h>
#include <string.h>

static char *copy_text(const char *text, size_t n_bytes) {
    buffer b = {0};
    buffer_put(&b, text, n_bytes);
    return b.data;
}

static void free_turn(turn *t) {
    free(t->user);
    free(t->assistant);
}

void conversation_system(conversation *c, const char *text, size_t n_bytes) {
    free(c->system);
    c->system = n_bytes == 0 ? NULL : copy_text(text, n_bytes);
    c->n_system = n_bytes;
}

void conversation_ask(conversation *c, const char *text, size_t n_bytes) {
    if (c->n_turns == c->cap) {
        size_t cap = c->cap == 0 ? 16 : 2 * c->cap;
        buffer grown = {0};
        buffer_reserve(&grown, cap * sizeof *c->turns); /* ends the program where memory ran out */
        if (c->n_turns > 0) {
            memcpy(grown.data, c->turns, c->n_turns * sizeof *c->turns);
        }
        free(c->turns);
        c->turns = (turn *)(void *)grown.data;
        c->cap = cap;
    }
    c->turns[c->n_turns++] = (turn){.user = copy_text(text, n_bytes), .n_user = n_bytes};
}

void conversation_answer(conversation *c, const char *text, size_t n_bytes) {
    turn *last = &c->turns[c->n_turns - 1];
    if (n_bytes == 0) {
        free_turn(last);
        c->n_turns--;
        return;
    }
    last->assistant = copy_text(text, n_bytes);
    last->n_assistant = n_bytes;
}

void conversation_reset(conversation *c) {
    for (size_t i = 0; i < c->n_turns; i++) {
        free_turn(&c->turns[i]);
    }
    c->n_turns = 0;
}

/* Whether `messages` are a conversation: perhaps a system prompt, then questions that each have an answer. */
static bool is_history(const ellm_json *messages) {
    bool asks = true;
    if (messages == NULL || messages->kind != ELLM_JSON_ARRAY) {
        return false;
    }
    for (const ellm_json *each = messages->first; each != NULL; each = each->next) {
        const ellm_json *role = ellm_json_get(each, "role"), *text = ellm_json_get(each, "content");
        bool is_system = each == messages->first && ellm_json_equals(role, "system");
        if (text == NULL || text->kind != ELLM_JSON_STRING || (text->count == 0 && !is_system)
            || (!is_system && !ellm_json_equals(role, asks ? "user" : "assistant"))) {
            return false;
        }
        asks = is_system || !asks;
    }
    return asks;
}

bool conversation_read(conversation *c, const ellm_json *messages) {
    if (!is_history(messages)) {
        return false;
    }
    conversation_reset(c);
    conversation_system(c, "", 0);
    for (const ellm_json *each = messages->first; each != NULL; each = each->next) {
        const ellm_json *role = ellm_json_get(each, "role"), *text = ellm_json_get(each, "content");
        if (ellm_json_equals(role, "system")) {
            conversation_system(c, text->text, text->count);
        } else if (ellm_json_equals(role, "user")) {
            conversation_ask(c, text->text, text->count);
        } else {
            conversation_answer(c, text->text, text->count);
        }
    }
    return true;
}

void conversation_free(conversation *c) {
    conversation_reset(c);
    free(c->turns);
    free(c->system);
    *c = (conversation){0};
}

static void put_message(buffer *json, const char *role, const char *text, size_t n_bytes) {
    buffer_print(json, "%s{\"role\":\"%s\",\"content\":", json->data[json->n - 1] == '[' ? "" : ",", role);
    buffer_put_json(json, text, n_bytes);
    buffer_put(json, "}", 1);
}

static void put_messages(const conversation *c, const char *system, buffer *json) {
    buffer_put(json, "[", 1);
    if (system != NULL) {
        put_message(json, "system", system, strlen(system));
    }
    for (size_t i = 0; i < c->n_turns; i++) {
        const turn *t = &c->turns[i];
        put_message(json, "user", t->user, t->n_user);
        if (t->assistant != NULL) {
            put_message(json, "assistant", t->assistant, t->n_assistant);
        }
    }
    buffer_put(json, "]", 1);
}

void conversation_write(const conversation *c, buffer *json) {
    put_messages(c, c->system, json);
}

static ellm_status render(const conversation *c, const engine *e, buffer *text, ellm_error *error) {
    const char *system = c->system != NULL ? c->system : ellm_model_system(e->model);
    if (!ellm_model_has_chat_template(e->model)) {
        if (system != NULL) {
            buffer_print(text, "%s\n\n", system);
        }
        for (size_t i = 0; i < c->n_turns; i++) {
            const turn *t = &c->turns[i];
            buffer_print(text, "User: %s\nAssistant:%s%s%s", t->user, t->assistant == NULL ? "" : " ",
                         t->assistant == NULL ? "" : t->assistant, t->assistant == NULL ? "" : "\n");
        }
        return ELLM_OK;
    }
    buffer json = {0};
    put_messages(c, system, &json);
    ellm_status status = ELLM_BUFFER_SMALL;
    size_t need = 2 * json.n + 4096;
    for (int attempt = 0; attempt < 2 && status == ELLM_BUFFER_SMALL; attempt++) {
        buffer_clear(text);
        buffer_reserve(text, need);
        status = ellm_chat_render(e->model, json.data, c->extra, true, text->data, text->cap, &need, error);
    }
    if (status == ELLM_OK) {
        text->n = need;
    }
    buffer_free(&json);
    return status;
}

static ellm_status encode(const conversation *c, engine *e, int32_t **ids, size_t *n, ellm_error *error) {
    buffer text = {0};
    *ids = NULL;
    ellm_status status = render(c, e, &text, error);
    if (status == ELLM_OK) { /* a template writes the special tokens itself */
        status = engine_encode(e, text.data, text.n, !ellm_model_has_chat_template(e->model), ids, n, error);
    }
    buffer_free(&text);
    return status;
}

ellm_status conversation_prompt(conversation *c, engine *e, size_t reserve, int32_t **ids, size_t *n, size_t *n_dropped,
                                ellm_error *error) {
    size_t room = (size_t)e->context_length;
    *n_dropped = 0;
    ellm_status status = encode(c, e, ids, n, error);
    bool full = status == ELLM_OK && *n + reserve > room;
    while (status == ELLM_OK && full && c->n_turns > 1 && *n > room / 2) {
        free_turn(&c->turns[0]);
        c->n_turns--;
        memmove(c->turns, c->turns + 1, c->n_turns * sizeof *c->turns);
        ++*n_dropped;
        free(*ids);
        status = encode(c, e, ids, n, error);
    }
    if (status == ELLM_OK && *n >= room) {
        status = ellm_fail(
            error, ELLM_CONTEXT_FULL,
            "the system prompt and the question have %zu tokens, the context %zu; shorten them or raise --context", *n,
            room);
    }
    if (status != ELLM_OK) {
        free(*ids);
        *ids = NULL;
    }
    return status;
}
