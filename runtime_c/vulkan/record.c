/* Every function of the plan as a command buffer that is recorded once and submitted again and again, with a barrier only
 * where a step touches what an earlier one wrote, or writes what an earlier one read. */
#include "error.h"
#include "launch.h"
#include "parts.h"

enum { most_accesses = 512 }; /* remembered since the last barrier */

/* What a step did to a part of the arena, or to a state. */
struct access {
    ellm_bind bind;
    uint64_t index, start, end; /* index: of the state */
    bool writes;
};

struct hazards {
    struct access list[most_accesses];
    uint32_t n;
};

static struct access access_of(const ellm_gpu *gpu, const ellm_plan_parameter *parameter,
                               const ellm_plan_argument *argument) {
    uint64_t bytes = parameter->bytes * gpu->source.symbols[parameter->symbol];
    bool in_arena = argument->bind == ELLM_BIND_ARENA;
    return (struct access){.bind = argument->bind,
                           .index = in_arena ? 0 : argument->value,
                           .start = in_arena ? argument->value : 0,
                           .end = in_arena ? argument->value + bytes : UINT64_MAX,
                           .writes = parameter->writes};
}

static bool conflicts(const struct hazards *hazards, const struct access *now) {
    for (uint32_t i = 0; i < hazards->n; i++) {
        const struct access *then = &hazards->list[i];
        if (then->bind == now->bind && then->index == now->index && then->start < now->end && now->start < then->end
            && (then->writes || now->writes)) {
            return true;
        }
    }
    return false;
}

/* Whether a barrier must stand before a step; notes what the step does. */
static bool needs_barrier(const ellm_gpu *gpu, const ellm_plan_step *step, struct hazards *hazards) {
    bool needed = hazards->n + step->kernel->n_parameters > most_accesses;
    for (uint32_t i = 0; i < step->kernel->n_parameters && !needed; i++) {
        ellm_bind bind = step->arguments[i].bind;
        const struct access now = access_of(gpu, &step->kernel->parameters[i], &step->arguments[i]);
        needed = (bind == ELLM_BIND_ARENA || bind == ELLM_BIND_STATE) && conflicts(hazards, &now);
    }
    hazards->n = needed ? 0 : hazards->n;
    for (uint32_t i = 0; i < step->kernel->n_parameters; i++) {
        ellm_bind bind = step->arguments[i].bind;
        if (bind == ELLM_BIND_ARENA || bind == ELLM_BIND_STATE) {
            hazards->list[hazards->n++] = access_of(gpu, &step->kernel->parameters[i], &step->arguments[i]);
        }
    }
    return needed;
}

/* ---- command buffers ---- */

ellm_status ellm_vulkan_commands(ellm_gpu *gpu, VkCommandBuffer *commands, ellm_error *error) {
    if (gpu->command_pool == VK_NULL_HANDLE) {
        const VkCommandPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                              .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                              .queueFamilyIndex = gpu->family};
        VkResult result = gpu->api.CreateCommandPool(gpu->device, &info, NULL, &gpu->command_pool);
        if (result != VK_SUCCESS) {
            gpu->command_pool = VK_NULL_HANDLE;
            return ellm_vulkan_failed(result, "recording", error);
        }
    }
    const VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                              .commandPool = gpu->command_pool,
                                              .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                              .commandBufferCount = 1};
    VkResult result = gpu->api.AllocateCommandBuffers(gpu->device, &info, commands);
    return result == VK_SUCCESS ? ELLM_OK : ellm_vulkan_failed(result, "recording", error);
}

ellm_status ellm_vulkan_begin(ellm_gpu *gpu, VkCommandBuffer commands, bool once, ellm_error *error) {
    const VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                           .flags = once ? VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT : 0};
    VkResult result = gpu->api.BeginCommandBuffer(commands, &info);
    return result == VK_SUCCESS ? ELLM_OK : ellm_vulkan_failed(result, "recording", error);
}

void ellm_vulkan_barrier(const ellm_gpu *gpu, VkCommandBuffer commands, VkPipelineStageFlags from,
                         VkAccessFlags written, VkPipelineStageFlags to, VkAccessFlags read) {
    const VkMemoryBarrier barrier = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER, .srcAccessMask = written, .dstAccessMask = read};
    gpu->api.CmdPipelineBarrier(commands, from, to, 0, 1, &barrier, 0, NULL, 0, NULL);
}

/* ---- descriptors ---- */

static ellm_status new_pool(ellm_gpu *gpu, ellm_error *error) {
    const ellm_plan_ladder *ladders[] = {&gpu->source.plan->body, &gpu->source.plan->head};
    uint64_t sets = 0, buffers = 0;
    for (int l = 0; l < 2; l++) {
        for (uint32_t f = 0; f < ladders[l]->n_functions; f++) {
            const ellm_plan_function *function = &ladders[l]->functions[f];
            sets += function->n_steps;
            for (uint32_t s = 0; s < function->n_steps; s++) {
                buffers += function->steps[s].kernel->n_parameters;
            }
        }
    }
    if (sets > UINT32_MAX / ELLM_VULKAN_BINDINGS) {
        return ellm_fail(error, ELLM_NO_MEMORY, "a plan of too many steps for a GPU");
    }
    const VkDescriptorPoolSize size = {.type = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                       .descriptorCount = buffers > 0 ? (uint32_t)buffers : 1};
    const VkDescriptorPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
                                             .maxSets = sets > 0 ? (uint32_t)sets : 1,
                                             .poolSizeCount = 1,
                                             .pPoolSizes = &size};
    VkResult result = gpu->api.CreateDescriptorPool(gpu->device, &info, NULL, &gpu->descriptor_pool);
    if (result != VK_SUCCESS) {
        gpu->descriptor_pool = VK_NULL_HANDLE;
        return ellm_vulkan_failed(result, "recording", error);
    }
    return ELLM_OK;
}

VkDescriptorBufferInfo ellm_vulkan_bound(const ellm_gpu *gpu, const ellm_plan_argument *argument, VkDeviceSize bytes) {
    switch (argument->bind) {
    case ELLM_BIND_WEIGHT: {
        const ellm_vulkan_place *place = &gpu->weights[argument->value];
        return (VkDescriptorBufferInfo){place->buffer->buffer, place->offset, bytes};
    }
    case ELLM_BIND_STATE: {
        const ellm_vulkan_place *place = &gpu->states[argument->value];
        return (VkDescriptorBufferInfo){place->buffer->buffer, place->offset, bytes};
    }
    case ELLM_BIND_INPUT:
        return (VkDescriptorBufferInfo){gpu->inputs.buffer, gpu->input_offsets[argument->value], bytes};
    case ELLM_BIND_ARENA: break;
    }
    return (VkDescriptorBufferInfo){gpu->arena.buffer, argument->value, bytes};
}

static ellm_status describe(ellm_gpu *gpu, const ellm_plan_step *step, VkDescriptorSet *set, ellm_error *error) {
    uint32_t n = step->kernel->n_parameters;
    const VkDescriptorSetAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
                                              .descriptorPool = gpu->descriptor_pool,
                                              .descriptorSetCount = 1,
                                              .pSetLayouts = &gpu->set_layouts[n]};
    VkResult result = gpu->api.AllocateDescriptorSets(gpu->device, &info, set);
    if (result != VK_SUCCESS) {
        return ellm_vulkan_failed(result, "recording", error);
    }
    VkDescriptorBufferInfo buffers[ELLM_VULKAN_BINDINGS];
    for (uint32_t i = 0; i < n; i++) {
        const ellm_plan_parameter *parameter = &step->kernel->parameters[i];
        const VkDeviceSize bytes = parameter->bytes * gpu->source.symbols[parameter->symbol];
        /* an empty range is not allowed; every buffer has a word */
        buffers[i] = ellm_vulkan_bound(gpu, &step->arguments[i], bytes > 0 ? (bytes + 3) / 4 * 4 : 4);
        const VkDeviceSize alignment = gpu->limits.minStorageBufferOffsetAlignment;
        if (alignment > 0 && buffers[i].offset % alignment != 0) {
            return ellm_fail(
                error, ELLM_GPU_MISSING,
                "kernel %.100s binds what lies at %llu in the arena, %.80s wants multiples of %llu; compile "
                "the bundle anew",
                step->kernel->name, (unsigned long long)buffers[i].offset, gpu->info.name,
                (unsigned long long)alignment);
        }
        if (buffers[i].range > gpu->limits.maxStorageBufferRange) {
            return ellm_fail(error, ELLM_NO_MEMORY,
                             "kernel %.100s reads %llu MiB at once, %.80s can bind %u MiB; compile with --device cpu",
                             step->kernel->name, (unsigned long long)(buffers[i].range >> 20), gpu->info.name,
                             gpu->limits.maxStorageBufferRange >> 20);
        }
    }
    const VkWriteDescriptorSet write = {.sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
                                        .dstSet = *set,
                                        .descriptorCount = n,
                                        .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                        .pBufferInfo = buffers};
    gpu->api.UpdateDescriptorSets(gpu->device, 1, &write, 0, NULL);
    return ELLM_OK;
}

/* ---- functions ---- */

void ellm_vulkan_record_step(ellm_gpu *gpu, const ellm_vulkan_function *function, uint32_t s,
                             VkCommandBuffer commands) {
    const ellm_plan_kernel *kernel = function->source->steps[s].kernel;
    VkPipelineLayout layout = gpu->layouts[kernel->n_parameters];
    gpu->api.CmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE,
                             gpu->pipelines[kernel - gpu->source.plan->kernels]);
    gpu->api.CmdBindDescriptorSets(commands, VK_PIPELINE_BIND_POINT_COMPUTE, layout, 0, 1, &function->sets[s], 0, NULL);
    int32_t scalars[ELLM_KERNEL_SCALARS];
    for (uint32_t i = 0; i < kernel->n_scalars; i++) {
        scalars[i] = (int32_t)gpu->source.symbols[kernel->scalars[i]];
    }
    if (kernel->n_scalars > 0) {
        gpu->api.CmdPushConstants(commands, layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, 4 * kernel->n_scalars, scalars);
    }
    gpu->api.CmdDispatch(commands, kernel->grid[0], kernel->grid[1], kernel->grid[2]);
}

/* timed: with the time before the first step and behind each, which a barrier separates from the next. */
static ellm_status record(ellm_gpu *gpu, ellm_vulkan_function *function, bool is_head, bool timed,
                          VkCommandBuffer commands, ellm_error *error) {
    const VkPipelineStageFlags compute = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                               transfer = VK_PIPELINE_STAGE_TRANSFER_BIT;
    const VkAccessFlags both = VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT;
    static const struct hazards none;
    struct hazards hazards = none;
    ellm_status status = ellm_vulkan_begin(gpu, commands, false, error);
    if (status != ELLM_OK) {
        return status;
    }
    ellm_vulkan_barrier(gpu, commands, compute | transfer, VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
                        compute, both);
    if (timed) {
        gpu->api.CmdResetQueryPool(commands, gpu->queries, 0, function->source->n_steps + 1);
        gpu->api.CmdWriteTimestamp(commands, compute, gpu->queries, 0);
    }
    uint32_t n_barriers = 1;
    for (uint32_t s = 0; s < function->source->n_steps; s++) {
        if (needs_barrier(gpu, &function->source->steps[s], &hazards) || timed) {
            ellm_vulkan_barrier(gpu, commands, compute, VK_ACCESS_SHADER_WRITE_BIT, compute, both);
            n_barriers++;
        }
        ellm_vulkan_record_step(gpu, function, s, commands);
        if (timed) {
            gpu->api.CmdWriteTimestamp(commands, compute, gpu->queries, s + 1);
        }
    }
    if (is_head && gpu->arena.cached) {
        ellm_vulkan_barrier(gpu, commands, compute, VK_ACCESS_SHADER_WRITE_BIT, VK_PIPELINE_STAGE_HOST_BIT,
                            VK_ACCESS_HOST_READ_BIT);
        n_barriers++;
    } else if (is_head) {
        const ellm_plan *plan = gpu->source.plan;
        const VkBufferCopy rows = {.srcOffset = plan->logits_offset,
                                   .size = plan->logits_row_bytes * (VkDeviceSize)function->source->n};
        ellm_vulkan_barrier(gpu, commands, compute, VK_ACCESS_SHADER_WRITE_BIT, transfer, VK_ACCESS_TRANSFER_READ_BIT);
        gpu->api.CmdCopyBuffer(commands, gpu->arena.buffer, gpu->logits.buffer, 1, &rows);
        ellm_vulkan_barrier(gpu, commands, transfer, VK_ACCESS_TRANSFER_WRITE_BIT, VK_PIPELINE_STAGE_HOST_BIT,
                            VK_ACCESS_HOST_READ_BIT);
        n_barriers += 2;
    }
    function->n_barriers = timed ? function->n_barriers : n_barriers;
    VkResult result = gpu->api.EndCommandBuffer(commands);
    return result == VK_SUCCESS ? ELLM_OK : ellm_vulkan_failed(result, "recording", error);
}

static ellm_status new_queries(ellm_gpu *gpu, ellm_error *error) {
    if (gpu->timestamp_bits == 0 || gpu->n_queries < 2) {
        return ELLM_OK; /* steps cannot be timed here */
    }
    const VkQueryPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                                        .queryType = VK_QUERY_TYPE_TIMESTAMP,
                                        .queryCount = gpu->n_queries};
    VkResult result = gpu->api.CreateQueryPool(gpu->device, &info, NULL, &gpu->queries);
    if (result != VK_SUCCESS) {
        gpu->queries = VK_NULL_HANDLE;
        return ellm_vulkan_failed(result, "recording", error);
    }
    return ELLM_OK;
}

static ellm_status record_ladder(ellm_gpu *gpu, const ellm_plan_ladder *ladder, bool is_head,
                                 ellm_vulkan_function **functions, ellm_error *error) {
    *functions = ellm_region_alloc(&gpu->region, ladder->n_functions, sizeof **functions);
    if (*functions == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for functions");
    }
    ellm_status status = ELLM_OK;
    for (uint32_t f = 0; f < ladder->n_functions && status == ELLM_OK; f++) {
        ellm_vulkan_function *function = &(*functions)[f];
        function->source = &ladder->functions[f];
        gpu->n_queries =
            function->source->n_steps + 1 > gpu->n_queries ? function->source->n_steps + 1 : gpu->n_queries;
        function->sets = ellm_region_alloc(&gpu->region, function->source->n_steps, sizeof *function->sets);
        if (function->sets == NULL) {
            return ellm_fail(error, ELLM_NO_MEMORY, "no memory for steps");
        }
        for (uint32_t s = 0; s < function->source->n_steps && status == ELLM_OK; s++) {
            status = describe(gpu, &function->source->steps[s], &function->sets[s], error);
        }
        status = status == ELLM_OK ? ellm_vulkan_commands(gpu, &function->commands, error) : status;
        status = status == ELLM_OK ? record(gpu, function, is_head, false, function->commands, error) : status;
    }
    return status;
}

ellm_status ellm_vulkan_record_all(ellm_gpu *gpu, ellm_error *error) {
    const ellm_plan *plan = gpu->source.plan;
    ellm_status status = new_pool(gpu, error);
    status = status == ELLM_OK ? record_ladder(gpu, &plan->body, false, &gpu->body, error) : status;
    status = status == ELLM_OK ? record_ladder(gpu, &plan->head, true, &gpu->head, error) : status;
    status = status == ELLM_OK && gpu->copying == NULL ? ellm_vulkan_commands(gpu, &gpu->copying, error) : status;
    status = status == ELLM_OK ? new_queries(gpu, error) : status;
    if (status == ELLM_OK) {
        gpu->info.n_dispatches = gpu->body->source->n_steps + gpu->head->source->n_steps;
        gpu->info.n_barriers = gpu->body->n_barriers + gpu->head->n_barriers;
    }
    return status;
}

ellm_status ellm_vulkan_record_timed(ellm_gpu *gpu, ellm_vulkan_function *function, bool is_head, ellm_error *error) {
    if (function->timed != NULL) {
        return ELLM_OK;
    }
    if (gpu->queries == VK_NULL_HANDLE) {
        return ellm_fail(error, ELLM_GPU_MISSING, "%.80s has no clock to time steps with", gpu->info.name);
    }
    ellm_status status = ellm_vulkan_commands(gpu, &function->timed, error);
    return status == ELLM_OK ? record(gpu, function, is_head, true, function->timed, error) : status;
}

void ellm_vulkan_free_records(ellm_gpu *gpu) {
    if (gpu->queries != VK_NULL_HANDLE) {
        gpu->api.DestroyQueryPool(gpu->device, gpu->queries, NULL);
    }
    if (gpu->descriptor_pool != VK_NULL_HANDLE) {
        gpu->api.DestroyDescriptorPool(gpu->device, gpu->descriptor_pool, NULL);
    }
    if (gpu->command_pool != VK_NULL_HANDLE) {
        gpu->api.DestroyCommandPool(gpu->device, gpu->command_pool, NULL);
    }
}
