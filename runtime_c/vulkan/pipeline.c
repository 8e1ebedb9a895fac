#include <stdio.h>

#include "error.h"
#include "launch.h"
#include "parts.h"

/* One layout for each number of buffers: they are all storage buffers, bound in the order of a kernel's arguments. */
static ellm_status new_layout(ellm_gpu *gpu, uint32_t n, ellm_error *error) {
    VkDescriptorSetLayoutBinding bindings[ELLM_VULKAN_BINDINGS];
    for (uint32_t i = 0; i < n; i++) {
        bindings[i] = (VkDescriptorSetLayoutBinding){.binding = i,
                                                     .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                                     .descriptorCount = 1,
                                                     .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
    }
    const VkDescriptorSetLayoutCreateInfo set = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO, .bindingCount = n, .pBindings = bindings};
    VkResult result = gpu->api.CreateDescriptorSetLayout(gpu->device, &set, NULL, &gpu->set_layouts[n]);
    if (result != VK_SUCCESS) {
        gpu->set_layouts[n] = VK_NULL_HANDLE;
        return ellm_vulkan_failed(result, "describing kernels", error);
    }
    const VkPushConstantRange scalars = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = 4 * ELLM_KERNEL_SCALARS};
    const VkPipelineLayoutCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                             .setLayoutCount = 1,
                                             .pSetLayouts = &gpu->set_layouts[n],
                                             .pushConstantRangeCount = 1,
                                             .pPushConstantRanges = &scalars};
    result = gpu->api.CreatePipelineLayout(gpu->device, &info, NULL, &gpu->layouts[n]);
    if (result != VK_SUCCESS) {
        gpu->layouts[n] = VK_NULL_HANDLE;
        return ellm_vulkan_failed(result, "describing kernels", error);
    }
    return ELLM_OK;
}

static ellm_status check_limits(const ellm_gpu *gpu, const ellm_plan_kernel *kernel, const ellm_shader *shader,
                                ellm_error *error) {
    const VkPhysicalDeviceLimits *most = &gpu->limits;
    uint64_t local = (uint64_t)shader->local[0] * shader->local[1] * shader->local[2];
    bool good = local <= most->maxComputeWorkGroupInvocations
                && kernel->n_parameters <= most->maxPerStageDescriptorStorageBuffers;
    for (int i = 0; i < 3; i++) {
        good = good && shader->local[i] <= most->maxComputeWorkGroupSize[i]
               && kernel->grid[i] <= most->maxComputeWorkGroupCount[i];
    }
    return good ? ELLM_OK
                : ellm_fail(
                      error, ELLM_GPU_MISSING,
                      "kernel %.100s is more than %.80s can run (%u invocations, %u buffers); compile with --device "
                      "cpu",
                      kernel->name, gpu->info.name, (unsigned)local, kernel->n_parameters);
}

static ellm_status build(ellm_gpu *gpu, const ellm_plan_kernel *kernel, VkPipeline *pipeline, ellm_error *error) {
    const ellm_shader *shader = kernel->function;
    ellm_status status = check_limits(gpu, kernel, shader, error);
    if (status == ELLM_OK && gpu->layouts[kernel->n_parameters] == VK_NULL_HANDLE) {
        status = new_layout(gpu, kernel->n_parameters, error);
    }
    if (status != ELLM_OK) {
        return status;
    }
    const VkShaderModuleCreateInfo code = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = shader->n_bytes, .pCode = shader->code};
    char what[128]; /* for a driver's maintainers: some take all kernels but one */
    snprintf(what, sizeof what, "compiling kernel %.100s", kernel->name);
    VkShaderModule module;
    VkResult result = gpu->api.CreateShaderModule(gpu->device, &code, NULL, &module);
    if (result != VK_SUCCESS) {
        return ellm_vulkan_failed(result, what, error);
    }
    const bool is_sized = (shader->needs & ELLM_NEEDS_MATRIX) != 0;
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO,
        .requiredSubgroupSize = shader->needs >> 16 & 255};
    const VkPipelineShaderStageCreateFlags whole = VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT;
    const VkComputePipelineCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
                                              .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                                                        .pNext = is_sized && gpu->sizes_subgroups ? &size : NULL,
                                                        .flags = is_sized ? whole : 0,
                                                        .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                                                        .module = module,
                                                        .pName = "main"},
                                              .layout = gpu->layouts[kernel->n_parameters]};
    result = gpu->api.CreateComputePipelines(gpu->device, gpu->cache, 1, &info, NULL, pipeline);
    gpu->api.DestroyShaderModule(gpu->device, module, NULL);
    if (result != VK_SUCCESS) {
        *pipeline = VK_NULL_HANDLE;
        return ellm_vulkan_failed(result, what, error);
    }
    return ELLM_OK;
}

ellm_status ellm_vulkan_build_pipelines(ellm_gpu *gpu, ellm_error *error) {
    const ellm_plan *plan = gpu->source.plan;
    gpu->pipelines = ellm_region_alloc(&gpu->region, plan->n_kernels, sizeof *gpu->pipelines);
    if (gpu->pipelines == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for the list of kernels");
    }
    ellm_vulkan_open_cache(gpu);
    ellm_status status = ELLM_OK;
    for (uint32_t i = 0; i < plan->n_kernels && status == ELLM_OK; i++) {
        status = build(gpu, &plan->kernels[i], &gpu->pipelines[i], error);
    }
    if (gpu->cache != VK_NULL_HANDLE) {
        if (status == ELLM_OK) {
            ellm_vulkan_save_cache(gpu);
        }
        gpu->api.DestroyPipelineCache(gpu->device, gpu->cache, NULL);
        gpu->cache = VK_NULL_HANDLE;
    }
    return status;
}

void ellm_vulkan_free_pipelines(ellm_gpu *gpu) {
    for (uint32_t i = 0; i < gpu->source.plan->n_kernels && gpu->pipelines != NULL; i++) {
        if (gpu->pipelines[i] != VK_NULL_HANDLE) {
            gpu->api.DestroyPipeline(gpu->device, gpu->pipelines[i], NULL);
        }
    }
    for (uint32_t i = 0; i <= ELLM_VULKAN_BINDINGS; i++) {
        if (gpu->layouts[i] != VK_NULL_HANDLE) {
            gpu->api.DestroyPipelineLayout(gpu->device, gpu->layouts[i], NULL);
        }
        if (gpu->set_layouts[i] != VK_NULL_HANDLE) {
            gpu->api.DestroyDescriptorSetLayout(gpu->device, gpu->set_layouts[i], NULL);
        }
    }
}
