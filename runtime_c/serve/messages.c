/* Messages of a conversation, as clients send them, become the prompt that the chat template makes of them. */
#include "posix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json_write.h"
#include "request.h"

enum { most_messages = 4096, rendered_most = 8 << 20 };

typedef struct message {
    buffer json;
    bool is_system, is_user;
} message;

/* A text, or the texts of an array of parts. */
static bool put_content(parsing *p, const ellm_json *content, buffer *text) {
    if (content == NULL) {
        return true;
    }
    if (content->kind == ELLM_JSON_STRING) {
        buffer_put(text, content->text, content->count);
        return true;
    }
    if (content->kind != ELLM_JSON_ARRAY) { /* the result of a tool, given as a value */
        buffer_put_value(text, content);
        return true;
    }
    for (const ellm_json *part = content->first; part != NULL; part = part->next) {
        const ellm_json *piece = member(part, "text");
        bool is_text =
            ellm_json_equals(member(part, "type"), "text") && piece != NULL && piece->kind == ELLM_JSON_STRING;
        if (!is_text) {
            return parsing_fail(p, 400, "messages", "a message has a part that is no text; this model reads only text");
        }
        buffer_put(text, piece->text, piece->count);
    }
    return true;
}

/* Templates want a call's arguments as an object; OpenAI's clients send them as text. */
static void put_arguments(parsing *p, const ellm_json *arguments, buffer *json) {
    ellm_json *object = NULL;
    if (arguments->kind == ELLM_JSON_STRING
        && ellm_json_read(arguments->text, arguments->count, &p->region, ELLM_USAGE, "arguments", &object, NULL)
               == ELLM_OK
        && object->kind == ELLM_JSON_OBJECT) {
        arguments = object;
    }
    buffer_put_value(json, arguments);
}

static bool put_calls(parsing *p, const ellm_json *calls, buffer *json) {
    if (calls->kind != ELLM_JSON_ARRAY) {
        return parsing_fail(p, 400, "messages", "'tool_calls' must be an array");
    }
    buffer_print(json, ",\"tool_calls\":[");
    for (const ellm_json *call = calls->first; call != NULL; call = call->next) {
        const ellm_json *function = member(call, "function"), *id = member(call, "id");
        const ellm_json *name = member(function, "name"), *arguments = member(function, "arguments");
        if (ellm_json_text(name, 256) == NULL) {
            return parsing_fail(p, 400, "messages", "a call in 'tool_calls' wants {\"function\":{\"name\":...}}");
        }
        buffer_print(json, "%s{\"type\":\"function\",", call == calls->first ? "" : ",");
        if (id != NULL && id->kind == ELLM_JSON_STRING) {
            buffer_print(json, "\"id\":");
            buffer_put_value(json, id);
            buffer_put(json, ",", 1);
        }
        buffer_print(json, "\"function\":{\"name\":");
        buffer_put_value(json, name);
        buffer_print(json, ",\"arguments\":");
        if (arguments != NULL) {
            put_arguments(p, arguments, json);
        } else {
            buffer_put(json, "{}", 2);
        }
        buffer_put(json, "}}", 2);
    }
    buffer_put(json, "]", 1);
    return true;
}

static const char *role_of(const ellm_json *role) {
    static const char names[][2][10] = {{"system", "system"},       {"developer", "system"}, {"user", "user"},
                                        {"assistant", "assistant"}, {"tool", "tool"},        {"function", "tool"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (ellm_json_equals(role, names[i][0])) {
            return names[i][1];
        }
    }
    return NULL;
}

static bool read_message(parsing *p, const ellm_json *from, message *m) {
    const char *role = role_of(member(from, "role"));
    const ellm_json *images = member(from, "images"), *calls = member(from, "tool_calls");
    if (role == NULL) {
        return parsing_fail(p, 400, "messages", "a message wants a 'role': system, developer, user, assistant or tool");
    }
    if (images != NULL && images->count > 0) {
        return parsing_fail(p, 400, "messages", "this model reads only text, no images");
    }
    buffer text = {0};
    bool good = put_content(p, member(from, "content"), &text);
    m->is_system = strcmp(role, "system") == 0;
    m->is_user = strcmp(role, "user") == 0;
    buffer_print(&m->json, "{\"role\":\"%s\",\"content\":", role);
    buffer_put_json(&m->json, text.n > 0 ? text.data : "", text.n);
    buffer_free(&text);
    for (const ellm_json *each = from->first; each != NULL; each = each->next) { /* name, tool_call_id, … */
        if (each->kind == ELLM_JSON_STRING && strcmp(each->key, "role") != 0 && strcmp(each->key, "content") != 0) {
            buffer_put_member(&m->json, each->key, each);
        }
    }
    good = good && (calls == NULL || calls->count == 0 || put_calls(p, calls, &m->json));
    buffer_put(&m->json, "}", 1);
    return good;
}

/* Further variables of the template. */
static bool put_extra(parsing *p, const ellm_json *tools, buffer *json) {
    const ellm_json *more = member(p->body, "chat_template_kwargs");
    buffer_put(json, "{", 1);
    if (tools != NULL) {
        for (const ellm_json *tool = tools->first; tool != NULL; tool = tool->next) {
            if (ellm_json_text(member(member(tool, "function"), "name"), 256) == NULL) {
                return parsing_fail(p, 400, "tools",
                                    "a tool is {\"type\":\"function\",\"function\":{\"name\":...,\"parameters\":...}}");
            }
        }
        buffer_put_member(json, "tools", tools);
    }
    if (more != NULL && more->kind != ELLM_JSON_OBJECT) {
        return parsing_fail(p, 400, "chat_template_kwargs", "'chat_template_kwargs' must be an object");
    }
    for (const ellm_json *each = more != NULL ? more->first : NULL; each != NULL; each = each->next) {
        if (strcmp(each->key, "messages") != 0 && strcmp(each->key, "tools") != 0) {
            buffer_put_member(json, each->key, each);
        }
    }
    buffer_put(json, "}", 1);
    return true;
}

/* The prompt of the system messages, or the bundle's system prompt where there are none, and of those from `first` on. */
static bool render(parsing *p, const message *list, size_t n, size_t first, const char *extra, generation *g) {
    buffer json = {0}, text = {0};
    ellm_error error = {{0}};
    const char *system = ellm_model_system(p->service->model);
    for (size_t i = 0; i < n; i++) {
        system = list[i].is_system ? NULL : system;
    }
    buffer_put(&json, "[", 1);
    if (system != NULL) {
        buffer_print(&json, "{\"role\":\"system\",\"content\":");
        buffer_put_string(&json, system);
        buffer_put(&json, "}", 1);
    }
    for (size_t i = 0; i < n; i++) {
        if (i >= first || list[i].is_system) {
            buffer_put(&json, ",", json.n > 1);
            buffer_put(&json, list[i].json.data, list[i].json.n);
        }
    }
    buffer_put(&json, "]", 1);
    ellm_status status = ELLM_BUFFER_SMALL;
    size_t need = json.n + 4096;
    for (int attempt = 0; attempt < 2 && status == ELLM_BUFFER_SMALL && need <= rendered_most; attempt++) {
        buffer_reserve(&text, need);
        status = ellm_chat_render(p->service->model, json.data, extra, true, text.data, text.cap, &need, &error);
    }
    bool good = status == ELLM_OK ? parse_text(p, text.data, need, false, g)
                                  : parsing_fail(p, 400, "messages", "%s",
                                                 error.text[0] != '\0' ? error.text : ellm_status_text(status));
    buffer_free(&json);
    buffer_free(&text);
    return good;
}

static bool render_all(parsing *p, const message *list, size_t n, const ellm_json *tools, bool may_drop,
                       generation *g) {
    buffer extra = {0};
    size_t room = (size_t)p->service->context_length, spare = room / 4, first = 0;
    if (g->options.most_tokens >= 0 && (size_t)g->options.most_tokens < spare) {
        spare = (size_t)g->options.most_tokens;
    }
    bool good = put_extra(p, tools, &extra) && render(p, list, n, 0, extra.data, g);
    while (good && may_drop && g->n_prompt + spare > room) {
        size_t left = 0, next = first; /* a rendering costs time: drops as much text as has too many tokens */
        for (size_t i = first; i < n; i++) {
            left += list[i].json.n;
        }
        uint64_t most = (uint64_t)left * (room - spare) / g->n_prompt;
        do {
            left -= list[next++].json.n;
        } while (next < n && (left > most || !list[next].is_user)); /* a turn begins with what the user says */
        if (next >= n) {
            break;
        }
        first = next;
        good = render(p, list, n, first, extra.data, g);
    }
    buffer_free(&extra);
    return good && check_room(p, g);
}

bool parse_messages(parsing *p, const ellm_json *messages, const ellm_json *tools, bool may_drop, generation *g) {
    if (messages == NULL || messages->kind != ELLM_JSON_ARRAY || messages->count == 0
        || messages->count > most_messages) {
        return parsing_fail(p, 400, "messages", "'messages' must be an array of 1 to %d messages", (int)most_messages);
    }
    if (tools != NULL && tools->kind != ELLM_JSON_ARRAY) {
        return parsing_fail(p, 400, "tools", "'tools' must be an array");
    }
    if (!ellm_model_has_chat_template(p->service->model)) {
        return parsing_fail(p, 400, "messages",
                            "this model has no chat template; give it plain text: /v1/completions, or /api/generate "
                            "with \"raw\": true");
    }
    message *list = calloc(messages->count, sizeof *list);
    size_t n = 0;
    bool good = list != NULL;
    if (!good) {
        (void)parsing_no_memory(p);
    }
    for (const ellm_json *each = messages->first; each != NULL && good; each = each->next) {
        good = (each->kind == ELLM_JSON_OBJECT || parsing_fail(p, 400, "messages", "a message must be an object"))
               && read_message(p, each, &list[n++]);
    }
    good = good && render_all(p, list, n, tools != NULL && tools->count > 0 ? tools : NULL, may_drop, g);
    for (size_t i = 0; i < n; i++) {
        buffer_free(&list[i].json);
    }
    free(list);
    return good;
}
