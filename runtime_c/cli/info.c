/* info: what a bundle is. Opening it is the check that it runs here. */
#include "posix.h"

#include <stdio.h>
#include <string.h>

#include "buffer.h"
#include "cores.h"
#include "cpu.h"
#include "json.h"
#include "program.h"
#include "trust.h"

enum { region_limit = 64 << 20 };

static long long whole(const ellm_json *object, const char *key) {
    int64_t value = 0;
    (void)ellm_json_int(ellm_json_get(object, key), INT64_MIN, INT64_MAX, &value);
    return (long long)value;
}

static const char *text(const ellm_json *object, const char *key) {
    const char *value = ellm_json_text(ellm_json_get(object, key), 1000);
    return value != NULL ? value : "?";
}

static void print_summary(const ellm_model *model, const ellm_model_info *info, const ellm_json *manifest) {
    const ellm_json *about = ellm_json_get(manifest, "model"), *target = ellm_json_get(manifest, "target");
    const ellm_json *scheme = ellm_json_get(manifest, "scheme"), *files = ellm_json_get(manifest, "files");
    const ellm_json *golden = ellm_json_get(manifest, "golden"), *provenance = ellm_json_get(manifest, "provenance");
    double parameters = (double)whole(about, "parameters");
    ellm_cores cores;
    ellm_cores_read(&cores);
    printf("%s\n", info->name);
    printf("  architecture  %s, %lld layers, %.1f M parameters, vocabulary %d\n", info->architecture,
           whole(about, "n_layers"), parameters / 1e6, (int)info->vocab_size);
    printf("  scheme        %s: body %s, embedding %s, head %s, kv %s\n", info->scheme, text(scheme, "body"),
           text(scheme, "embedding"), text(scheme, "head"), text(scheme, "kv"));
    printf("  target        %s %s, tier %s; this machine: %s, %d cores\n", text(target, "arch"), text(target, "os"),
           info->tier, ellm_cpu_arch(), (int)cores.n);
    if (info->is_both) {
        printf("  devices       the processor, or a GPU\n");
    }
#ifdef ELLM_VULKAN
    if (info->is_split) {
        printf("  devices       a GPU for the first %lld layers, the processor for the others\n",
               whole(ellm_json_get(manifest, "vulkan"), "layers"));
    }
#endif
    printf("  context       %d positions%s\n", (int)info->context_length,
           info->sliding_window > 0 ? ", sliding window" : "");
    printf("  memory        weights %.1f MB, arena %.1f MB, %.1f KB per position", (double)info->weight_bytes / 1e6,
           (double)info->arena_bytes / 1e6, (double)info->kv_bytes_per_token / 1e3);
    if (info->state_bytes_per_session > 0) {
        printf(", %.1f KB per session", (double)info->state_bytes_per_session / 1e3);
    }
    printf("\n");
    printf("  chat          %s; %u golden prompts\n",
           ellm_model_has_chat_template(model) ? "has a template" : "no template", golden != NULL ? golden->count : 0u);
    const int32_t *tokens;
    size_t n_prefix = ellm_model_prefix_tokens(model, &tokens);
    if (n_prefix > 0) {
        const ellm_json *tools = ellm_json_get(ellm_json_get(manifest, "prefix"), "tools");
        printf("  prefix        %zu tokens are computed already:%s%s\n", n_prefix,
               ellm_model_system(model) != NULL ? " system prompt" : "",
               tools != NULL && tools->kind == ELLM_JSON_BOOL && tools->integer != 0 ? " tools" : "");
    }
    printf("  bundle        format %lld, %u files, made by %s\n", whole(manifest, "format"),
           files != NULL ? files->count : 0u, text(provenance, "tool"));
    printf("  runtime       " RT_VERSION ", reads format 1\n");
}

ellm_status info_main(const settings *s, ellm_error *error) {
    ellm_model *model = NULL;
    trust t;
    ellm_status status = trust_find(&t, error);
    status = status != ELLM_OK ? status : ellm_model_open_trusted(s->directory, &t.files, &model, error);
    if (status != ELLM_OK) {
        return status;
    }
    ellm_model_info info;
    ellm_model_get_info(model, &info);
    if (info.is_both) { /* the other half is checked alike */
        ellm_model *other = NULL;
        status = ellm_model_open_on(s->directory, &t.files, ELLM_DEVICE_GPU, &other, error);
        ellm_model_close(other);
        if (status != ELLM_OK) {
            ellm_model_close(model);
            return status;
        }
    }
    if (s->json) {
        buffer json = {0};
        ellm_cores cores;
        ellm_cores_read(&cores);
        buffer_print(&json,
                     "{\"runtime\":{\"version\":\"%s\",\"formats\":[1],\"arch\":\"%s\",\"cores\":%d},\"chat_template\":"
                     "%s,\"manifest\":",
                     RT_VERSION, ellm_cpu_arch(), (int)cores.n, ellm_model_has_chat_template(model) ? "true" : "false");
        size_t start = json.n;
        buffer_put(&json, info.manifest, info.manifest_bytes);
        for (size_t i = start; i < json.n; i++) { /* on one line; no string of JSON holds a raw newline */
            if (json.data[i] == '\n' || json.data[i] == '\r') {
                json.data[i] = ' ';
            }
        }
        buffer_put(&json, "}\n", 2);
        status = output_write(json.data, json.n, error);
        buffer_free(&json);
    } else {
        ellm_region region;
        ellm_region_init(&region, region_limit);
        ellm_json *manifest = NULL;
        status = ellm_json_read(info.manifest, info.manifest_bytes, &region, ELLM_BUNDLE_FORMAT, "manifest.json",
                                &manifest, error);
        if (status == ELLM_OK) {
            print_summary(model, &info, manifest);
        }
        ellm_region_free(&region);
    }
    ellm_model_close(model);
    return status;
}
