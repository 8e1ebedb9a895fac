#include "posix.h"

#include "model.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "ahead.h"
#include "bundle.h"
#include "error.h"
#include "object.h"
#include "plan.h"
#include "safetensors.h"
#include "sha256.h"
#include "shader.h"
#include "state.h"
#include "template.h"
#include "tokenizer.h"

struct ellm_model {
    ellm_bundle bundle;
    ellm_plan plan, first; /* first: of a GPU's layers, where the processor has the others */
    ellm_file kernels, shader_file, tokenizer_file, template_file;
    ellm_object object;   /* of code for the processor */
    ellm_shaders shaders; /* for a GPU */
    ellm_file *shards;
    size_t n_shards;
    uint64_t decrypted_bytes, locked_bytes;
    ellm_tokenizer *tokenizer;
    ellm_template *template;
    ellm_state prefix;            /* without tokens: none */
    const ellm_file *prefix_file; /* its shard, which stays open */
    bool on_gpu;
#ifdef ELLM_VULKAN
    char computer[65]; /* of a GPU's states */
#endif
};

/* Maps a file that the manifest must list. */
static ellm_status map_listed(const ellm_model *model, const char *path, ellm_file *file, ellm_error *error) {
    if (ellm_bundle_find(&model->bundle, path) == NULL) {
        return ellm_fail(error, ELLM_BUNDLE_FORMAT, "manifest.json: files does not list %s; compile the bundle again",
                         path);
    }
    return ellm_file_map(model->bundle.directory, path, file, error);
}

/* Whether a GPU has the first layers and the processor the others. Without Vulkan, the GPU's plan is all there is to
 * open, and is then what cannot run. */
static bool is_split(const ellm_model *model) {
#ifdef ELLM_VULKAN
    return model->bundle.manifest.is_split;
#else
    (void)model;
    return false;
#endif
}

/* Whether a GPU computes anything. Without Vulkan, none does. */
static bool is_for_gpu(const ellm_model *model) {
#ifdef ELLM_VULKAN
    return model->on_gpu || is_split(model);
#else
    (void)model;
    return false;
#endif
}

/* Takes the device that was asked for, if the bundle is for it. */
static ellm_status choose(ellm_model *model, ellm_device device, ellm_error *error) {
    const ellm_manifest *manifest = &model->bundle.manifest;
    const bool wants_gpu = device == ELLM_DEVICE_GPU || device == ELLM_DEVICE_GPU_FIRST;
    model->on_gpu = (wants_gpu ? manifest->has_gpu : !manifest->has_cpu) && !is_split(model);
    if ((device == ELLM_DEVICE_GPU && !manifest->has_gpu) || (device == ELLM_DEVICE_CPU && !manifest->has_cpu)) {
        return ellm_fail(error, ELLM_USAGE, "the bundle is for %s only; compile it with --device %s, or both",
                         manifest->has_gpu ? "GPUs" : "processors", manifest->has_gpu ? "cpu" : "vulkan");
    }
    return ELLM_OK;
}

#ifdef ELLM_VULKAN
/* A GPU's numbers are not the processor's: the digits of the manifest, and who computed. */
static void name_computer(ellm_model *model) {
    static const char who[] = "vulkan";
    ellm_sha256 sha;
    ellm_sha256_init(&sha);
    ellm_sha256_update(&sha, model->bundle.sha256, sizeof model->computer - 1);
    ellm_sha256_update(&sha, who, sizeof who - 1);
    ellm_sha256_hex(&sha, model->computer);
}
#endif

/* A bundle for both has a second plan, and what the GPU needs packed otherwise in shards of its own. */
static bool is_gpus_half(const ellm_model *model) {
    return model->on_gpu && (model->bundle.manifest.has_cpu || model->bundle.manifest.is_split);
}

static ellm_status read_plan(ellm_model *model, bool is_gpus, int32_t vocab_size, ellm_plan *plan, ellm_error *error) {
    ellm_file file = {0};
    ellm_status status = map_listed(model, is_gpus ? "plan-vulkan.json" : "plan.json", &file, error);
    if (status == ELLM_OK) {
        status = ellm_plan_read((const char *)file.data, file.bytes, vocab_size, &model->bundle.region, plan, error);
    }
    ellm_file_close(&file);
    return status;
}

/* Whether a GPU's functions leave what the processor's take, row for row. */
static bool fit_together(const ellm_plan *first, const ellm_plan *then) {
    const ellm_plan_ladder *body = &first->body, *head = &first->head, *next = &then->body;
    bool fit = then->arriving_row_bytes == then->hidden_row_bytes && first->logits_row_bytes == then->hidden_row_bytes
               && body->n_functions == next->n_functions && head->n_functions == next->n_functions;
    for (uint32_t i = 0; i < next->n_functions && fit; i++) {
        fit = body->functions[i].n == next->functions[i].n && head->functions[i].n == next->functions[i].n;
    }
    return fit;
}

static ellm_status open_plan(ellm_model *model, ellm_error *error) {
    const ellm_manifest *manifest = &model->bundle.manifest;
    ellm_status status = read_plan(model, is_gpus_half(model),
                                   manifest->is_split && model->on_gpu ? 0 : manifest->vocab_size, &model->plan, error);
    if (status != ELLM_OK || !is_split(model)) {
        return status;
    }
    status = read_plan(model, true, 0, &model->first, error);
    return status != ELLM_OK || fit_together(&model->first, &model->plan)
               ? status
               : ellm_fail(error, ELLM_PLAN_INVALID,
                           "plan-vulkan.json does not leave the rows that plan.json takes; compile the bundle again");
}

/* A kernel's module must be for as many buffers as the plan binds, and the plan must say how many workgroups. */
static ellm_status check_shader(const ellm_plan_kernel *kernel, ellm_error *error) {
    const ellm_shader *shader = kernel->function;
    if (kernel->grid[0] == 0 || shader->n_bindings > kernel->n_parameters) {
        return ellm_fail(
            error, ELLM_PLAN_INVALID,
            "plan.json: kernel %.100s has no grid, or fewer arguments than its code; compile the bundle again",
            kernel->name);
    }
    return ELLM_OK;
}

static ellm_status open_shaders(ellm_model *model, ellm_plan *plan, ellm_error *error) {
    static const char path[] = "kernels.spv";
    ellm_file *file = &model->shader_file;
    ellm_status status = map_listed(model, path, file, error);
    if (status == ELLM_OK) {
        status = ellm_shaders_read(file->data, file->bytes, &model->bundle.region, &model->shaders, error);
    }
    ellm_file_release(file);
    for (uint32_t i = 0; i < plan->n_kernels && status == ELLM_OK; i++) {
        ellm_plan_kernel *kernel = &plan->kernels[i];
        kernel->function = ellm_shaders_find(&model->shaders, kernel->name);
        status = kernel->function != NULL
                     ? check_shader(kernel, error)
                     : ellm_fail(error, ELLM_KERNEL_INVALID,
                                 "%s: it lacks the kernel %.100s that plan.json calls; compile the bundle again", path,
                                 kernel->name);
    }
    return status;
}

static ellm_status open_kernels(ellm_model *model, ellm_error *error) {
    static const char path[] = "kernels.so";
    if (model->on_gpu) {
        return open_shaders(model, &model->plan, error);
    }
    ellm_status status = is_split(model) ? open_shaders(model, &model->first, error) : ELLM_OK;
    status = status == ELLM_OK ? map_listed(model, path, &model->kernels, error) : status;
    if (status == ELLM_OK) {
        status = ellm_object_open(&model->kernels, path, &model->object, error);
    }
    ellm_file_release(&model->kernels);
    for (uint32_t i = 0; i < model->plan.n_kernels && status == ELLM_OK; i++) {
        ellm_plan_kernel *kernel = &model->plan.kernels[i];
        kernel->function = ellm_object_find(&model->object, kernel->name);
        if (kernel->grid[0] != 0) {
            status = ellm_fail(error, ELLM_PLAN_INVALID,
                               "plan.json: kernel %.100s is a GPU's, the manifest says cpu; compile the bundle again",
                               kernel->name);
        } else if (kernel->function == NULL) {
            status = ellm_fail(error, ELLM_KERNEL_INVALID,
                               "%s: it lacks the kernel %.100s that plan.json calls; compile the bundle again", path,
                               kernel->name);
        }
    }
    return status;
}

/* ---- weights ---- */

typedef struct tensor_list {
    ellm_tensor *tensors;
    size_t n, cap;
} tensor_list;

static const char gpus_prefix[] = "weights/vulkan-";

static int compare_tensors(const void *a, const void *b) {
    return strcmp(((const ellm_tensor *)a)->name, ((const ellm_tensor *)b)->name);
}

/* Whether the list has a tensor of this name among its first n, which are sorted. */
static bool has_tensor(const tensor_list *list, size_t n, const ellm_tensor *tensor) {
    return n != 0 && bsearch(tensor, list->tensors, n, sizeof *tensor, compare_tensors) != NULL;
}

/* Sorts the GPU's own tensors, which came first, and leaves out the processor's of the same names behind them. */
static void prefer_first(tensor_list *list, size_t n_first) {
    if (n_first != 0) {
        qsort(list->tensors, n_first, sizeof *list->tensors, compare_tensors);
    }
    size_t kept = n_first;
    for (size_t i = n_first; i < list->n; i++) {
        if (!has_tensor(list, n_first, &list->tensors[i])) {
            list->tensors[kept++] = list->tensors[i];
        }
    }
    list->n = kept;
}

static ellm_status map_shard(ellm_model *model, const ellm_manifest_file *entry, ellm_error *error) {
    ellm_file *shard = &model->shards[model->n_shards];
    ellm_status status = ellm_file_map(model->bundle.directory, entry->path, shard, error);
    if (status == ELLM_OK) {
        model->n_shards++;
    }
    return status;
}

static ellm_status read_tensors(const ellm_file *shard, const char *path, ellm_region *region, ellm_tensor **tensors,
                                size_t *n, ellm_error *error) {
    if (shard->descriptor < 0) { /* decrypted */
        return ellm_safetensors_read(shard->data, shard->data, shard->bytes, path, region, tensors, n, error);
    }
    uint8_t length[8] = {0}, *head = NULL;
    ellm_status status = ellm_file_peek(shard, path, length, shard->bytes < 8 ? shard->bytes : 8, error);
    size_t n_head = status == ELLM_OK ? ellm_safetensors_head_bytes(length, shard->bytes) : 0;
    if (n_head != 0) {
        head = malloc(n_head);
        status = head == NULL ? ellm_fail(error, ELLM_NO_MEMORY, "%s: no memory for its header", path)
                              : ellm_file_peek(shard, path, head, n_head, error);
    }
    if (status == ELLM_OK && head != NULL) {
        memcpy(head, length, sizeof length); /* who writes to the file meanwhile does not change how much was read */
    }
    if (status == ELLM_OK) {
        status = ellm_safetensors_read(head != NULL ? head : length, shard->data, shard->bytes, path, region, tensors,
                                       n, error);
    }
    free(head);
    return status;
}

static ellm_status read_shard(ellm_file *shard, const char *path, bool stays_open, ellm_region *region,
                              tensor_list *list, ellm_error *error) {
    ellm_tensor *tensors;
    size_t n;
    ellm_status status = read_tensors(shard, path, region, &tensors, &n, error);
    if (shard->descriptor >= 0 && !stays_open) {
        ellm_file_release(shard);
    }
    if (status != ELLM_OK) {
        return status;
    }
    if (list->cap - list->n < n) {
        size_t cap = 2 * list->cap + n;
        ellm_tensor *grown = realloc(list->tensors, cap * sizeof *grown);
        if (grown == NULL) {
            return ellm_fail(error, ELLM_NO_MEMORY, "%s: no memory for its list of tensors", path);
        }
        list->tensors = grown;
        list->cap = cap;
    }
    if (n != 0) {
        memcpy(list->tensors + list->n, tensors, n * sizeof *tensors);
        list->n += n;
    }
    return ELLM_OK;
}

static ellm_status resolve_weights(ellm_plan *plan, ellm_tensor *tensors, size_t n, ellm_error *error) {
    if (n != 0) {
        qsort(tensors, n, sizeof *tensors, compare_tensors);
    }
    for (size_t i = 1; i < n; i++) {
        if (strcmp(tensors[i - 1].name, tensors[i].name) == 0) {
            return ellm_fail(error, ELLM_BUNDLE_FORMAT, "weights: tensor %.100s is there twice", tensors[i].name);
        }
    }
    for (uint32_t i = 0; i < plan->n_weights; i++) {
        ellm_plan_weight *weight = &plan->weights[i];
        ellm_tensor key = {.name = weight->tensor};
        const ellm_tensor *tensor = n == 0 ? NULL : bsearch(&key, tensors, n, sizeof key, compare_tensors);
        if (tensor == NULL || tensor->bytes != weight->bytes) {
            return ellm_fail(error, ELLM_PLAN_INVALID,
                             "plan.json: weight %.100s must have %llu bytes, weights/ has %s%llu; compile the bundle "
                             "again",
                             weight->tensor, (unsigned long long)weight->bytes, tensor == NULL ? "none, " : "",
                             tensor == NULL ? 0 : (unsigned long long)tensor->bytes);
        }
        weight->data = tensor->data;
    }
    return ELLM_OK;
}

/* The state that the bundle ships, among the tensors of all shards. */
static ellm_status find_prefix(ellm_model *model, const tensor_list *list, ellm_error *error) {
    const ellm_manifest *manifest = &model->bundle.manifest;
    ellm_kv kv = {.plan = &model->plan, .window = manifest->sliding_window};
#ifdef ELLM_VULKAN
    kv.first = ellm_model_first_plan(model);
#endif
    ellm_status status = ellm_state_read(list->tensors, list->n, &kv, manifest->vocab_size, manifest->prefix_file,
                                         &model->bundle.region, &model->prefix, error);
    if (status == ELLM_OK && model->prefix.n_tokens > manifest->context_length) {
        status = ellm_fail(error, ELLM_BUNDLE_FORMAT, "%s: %d tokens, the model has %d positions; compile it again",
                           manifest->prefix_file, (int)model->prefix.n_tokens, (int)manifest->context_length);
    }
    return status;
}

static bool is_gpus(const ellm_manifest_file *file) {
    return strncmp(file->path, gpus_prefix, sizeof gpus_prefix - 1) == 0;
}

static bool is_shard(const ellm_manifest_file *file) {
    static const char suffix[] = ".safetensors";
    size_t length = strlen(file->path), tail = sizeof suffix - 1;
    return file->is_weight && length > tail && strcmp(file->path + length - tail, suffix) == 0;
}

static ellm_status open_weights(ellm_model *model, ellm_error *error) {
    const ellm_manifest *manifest = &model->bundle.manifest;
    ellm_region region; /* of the tensors' names */
    ellm_region_init(&region, (size_t)256 << 20);
    tensor_list list = {0};
    ellm_status status = ELLM_OK;
    model->shards = ellm_region_alloc(&model->bundle.region, manifest->n_files, sizeof *model->shards);
    const ellm_manifest_file **entries = ellm_region_alloc(&model->bundle.region, manifest->n_files, sizeof *entries);
    if (model->shards == NULL || entries == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for the list of %zu files", manifest->n_files);
    }
    /* a GPU's own shards first; the processor has no use for them */
    size_t n_own = 0;
    for (int own = model->on_gpu || is_split(model) ? 1 : 0; own >= 0 && status == ELLM_OK; own--) {
        for (size_t i = 0; i < manifest->n_files && status == ELLM_OK; i++) {
            const ellm_manifest_file *file = &manifest->files[i];
            if (is_shard(file) && is_gpus(file) == (own == 1)) {
                entries[model->n_shards] = file;
                status = map_shard(model, file, error);
            }
        }
        n_own = own == 1 ? model->n_shards : n_own;
    }
    size_t n_first = 0;
    if (status == ELLM_OK) {
        status = ellm_encrypted_open(model->shards, entries, model->n_shards, &model->bundle.secret,
                                     &model->decrypted_bytes, &model->locked_bytes, error);
        model->plan.in_memory = model->first.in_memory = model->decrypted_bytes != 0;
    }
    for (size_t i = 0; i < model->n_shards && status == ELLM_OK; i++) {
        bool is_prefix = entries[i]->path == manifest->prefix_file;
        model->prefix_file = is_prefix ? &model->shards[i] : model->prefix_file;
        status = read_shard(&model->shards[i], entries[i]->path, is_prefix || is_for_gpu(model), &region, &list, error);
        n_first = i < n_own ? list.n : n_first;
    }
    if (status == ELLM_OK && is_split(model)) { /* each has its own, of equal names where both read it */
        status = resolve_weights(&model->first, list.tensors, n_first, error);
    } else if (status == ELLM_OK) {
        prefer_first(&list, n_first);
        n_first = 0;
    }
    if (status == ELLM_OK) {
        status = resolve_weights(&model->plan, list.n > 0 ? list.tensors + n_first : NULL, list.n - n_first, error);
    }
    if (status == ELLM_OK && manifest->prefix_file != NULL) {
        status = find_prefix(model, &list, error);
    }
    if (status == ELLM_OK && !model->plan.in_memory) {
        ellm_ahead_advise(&model->plan);
        ellm_ahead_advise(&model->first);
    }
    free(list.tensors);
    ellm_region_free(&region);
    return status;
}

/* ---- text ---- */

static ellm_status open_text(ellm_model *model, ellm_error *error) {
    ellm_status status = map_listed(model, "tokenizer.bin", &model->tokenizer_file, error);
    if (status == ELLM_OK) {
        ellm_file_release(&model->tokenizer_file);
        status = ellm_tokenizer_open(model->tokenizer_file.data, model->tokenizer_file.bytes, &model->tokenizer, error);
    }
    if (status == ELLM_OK && ellm_bundle_find(&model->bundle, "chat.bin") != NULL) {
        status = ellm_file_map(model->bundle.directory, "chat.bin", &model->template_file, error);
        if (status == ELLM_OK) {
            ellm_file_release(&model->template_file);
            status = ellm_template_open(model->template_file.data, model->template_file.bytes, &model->template, error);
        }
    }
    return status;
}

/* ---- public ---- */

ellm_status ellm_model_open(const char *path, ellm_model **result, ellm_error *error) {
    return ellm_model_open_trusted(path, &(ellm_trust){.pinned = NULL}, result, error);
}

ellm_status ellm_model_open_trusted(const char *path, const ellm_trust *trust, ellm_model **result, ellm_error *error) {
    return ellm_model_open_on(path, trust, ELLM_DEVICE_CPU_FIRST, result, error);
}

ellm_status ellm_model_open_on(const char *path, const ellm_trust *trust, ellm_device device, ellm_model **result,
                               ellm_error *error) {
    *result = NULL;
    if (error != NULL) {
        error->text[0] = '\0';
    }
    ellm_model *model = calloc(1, sizeof *model);
    if (model == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory to open %.200s", path);
    }
    model->kernels.descriptor = model->shader_file.descriptor = model->tokenizer_file.descriptor =
        model->template_file.descriptor = -1;
    ellm_status status = ellm_bundle_open_trusted(path, trust, &model->bundle, error);
#ifdef ELLM_VULKAN /* kernels for GPUs run wherever this program does */
    if (!(device == ELLM_DEVICE_GPU && model->bundle.manifest.has_gpu && !is_split(model)))
#endif
        status = status != ELLM_OK ? status : ellm_bundle_check_cpu(&model->bundle, error);
    status = status != ELLM_OK ? status : ellm_bundle_check_files(&model->bundle, false, NULL, NULL, error);
    status = status != ELLM_OK ? status : choose(model, device, error);
    status = status != ELLM_OK ? status : open_plan(model, error);
#ifdef ELLM_VULKAN
    name_computer(model);
#endif
    status = status != ELLM_OK ? status : open_kernels(model, error);
    status = status != ELLM_OK ? status : open_weights(model, error);
    ellm_secret_wipe(&model->bundle.secret);
    status = status != ELLM_OK ? status : open_text(model, error);
    if (status != ELLM_OK) {
        ellm_model_close(model);
        return status;
    }
    *result = model;
    return ELLM_OK;
}

void ellm_model_close(ellm_model *model) {
    if (model == NULL) {
        return;
    }
    if (model->template != NULL) {
        ellm_template_close(model->template);
    }
    if (model->tokenizer != NULL) {
        ellm_tokenizer_close(model->tokenizer);
    }
    ellm_file_close(&model->template_file);
    ellm_file_close(&model->tokenizer_file);
    for (size_t i = 0; i < model->n_shards; i++) {
        ellm_file_close(&model->shards[i]);
    }
    ellm_object_close(&model->object);
    ellm_file_close(&model->kernels);
    ellm_file_close(&model->shader_file);
    ellm_bundle_close(&model->bundle);
    free(model);
}

void ellm_model_get_info(const ellm_model *model, ellm_model_info *info) {
    const ellm_manifest *manifest = &model->bundle.manifest;
    uint64_t token_bytes = ellm_plan_token_bytes(&model->plan) + ellm_plan_token_bytes(&model->first);
    uint64_t session_bytes = ellm_plan_session_bytes(&model->plan) + ellm_plan_session_bytes(&model->first);
    *info = (ellm_model_info){.name = manifest->name,
                              .architecture = manifest->architecture,
                              .scheme = manifest->scheme,
                              .tier = manifest->tier,
                              .manifest = model->bundle.text,
                              .manifest_bytes = model->bundle.text_bytes,
                              .vocab_size = manifest->vocab_size,
                              .context_length = manifest->context_length,
                              .sliding_window = manifest->sliding_window,
                              .step_rows = ellm_ladder_rows(&model->plan.body),
                              .weight_bytes = manifest->weight_bytes,
                              .arena_bytes = model->plan.arena_bytes,
                              .kv_bytes_per_token = token_bytes,
                              .state_bytes_per_session = session_bytes,
                              .decrypted_bytes = model->decrypted_bytes,
                              .locked_bytes = model->locked_bytes,
                              .on_gpu = model->on_gpu || is_split(model),
                              .is_split = is_split(model),
                              .is_both = manifest->has_cpu && manifest->has_gpu,
                              .gpu_times_slower = manifest->times_slower};
}

bool ellm_token_is_stop(const ellm_model *model, int32_t token) {
    for (size_t i = 0; i < model->bundle.manifest.n_stop_ids; i++) {
        if (model->bundle.manifest.stop_ids[i] == token) {
            return true;
        }
    }
    return false;
}

bool ellm_model_has_chat_template(const ellm_model *model) {
    return model->template != NULL;
}

void ellm_model_sampler_options(const ellm_model *model, ellm_sampler_options *options) {
    *options = model->bundle.manifest.sampling;
}

const ellm_state *ellm_model_prefix(const ellm_model *model, const ellm_file **file) {
    *file = model->prefix_file;
    return model->prefix.n_tokens > 0 ? &model->prefix : NULL;
}

size_t ellm_model_prefix_tokens(const ellm_model *model, const int32_t **tokens) {
    *tokens = model->prefix.tokens;
    return (size_t)model->prefix.n_tokens;
}

size_t ellm_model_embedding_size(const ellm_model *model) {
    const ellm_plan *plan = &model->plan;
    bool makes = plan->norm.n_functions > 0 && !model->on_gpu;
    return makes ? (size_t)plan->hidden_row_bytes / sizeof(float) : 0;
}

const char *ellm_model_system(const ellm_model *model) {
    return model->bundle.manifest.prefix_system;
}

const ellm_tokenizer *ellm_model_tokenizer(const ellm_model *model) {
    return model->tokenizer;
}

const ellm_template *ellm_model_template(const ellm_model *model) {
    return model->template;
}

const ellm_plan *ellm_model_plan(const ellm_model *model) {
    return &model->plan;
}

const ellm_plan *ellm_model_gpu_plan(const ellm_model *model) {
    return model->on_gpu ? &model->plan : is_split(model) ? &model->first : NULL;
}

#ifdef ELLM_VULKAN
const ellm_plan *ellm_model_first_plan(const ellm_model *model) {
    return is_split(model) ? &model->first : NULL;
}

const ellm_file *ellm_model_shards(const ellm_model *model, size_t *n) {
    *n = model->n_shards;
    return model->shards;
}
#endif

const char *ellm_model_computer(const ellm_model *model) {
#ifdef ELLM_VULKAN
    if (ellm_model_gpu_plan(model) != NULL) {
        return model->computer;
    }
#endif
    return model->bundle.sha256;
}

int ellm_model_directory(const ellm_model *model) {
    return model->bundle.directory;
}

const char *ellm_model_sha256(const ellm_model *model) {
    return model->bundle.sha256;
}
