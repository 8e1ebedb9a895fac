#include <stdio.h>
#include <string.h>

#include "error.h"
#include "parts.h"

/* Where processor and GPU share one memory, weights can stay where they are. */
static void enable_import(ellm_gpu *gpu, ellm_vulkan_features *f) {
    VkPhysicalDeviceExternalMemoryHostPropertiesEXT host = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT};
    VkPhysicalDeviceProperties2 about = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &host};
    if (f->has_import) {
        gpu->api.GetPhysicalDeviceProperties2(gpu->physical, &about);
        f->has_import = gpu->is_shared && !gpu->copies_all;
        gpu->import_alignment = host.minImportedHostPointerAlignment;
    }
    if (f->has_import) {
        f->extensions[f->n_extensions++] = VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME;
    }
}

static ellm_status create(ellm_gpu *gpu, const ellm_vulkan_features *f, ellm_error *error) {
    const float priority = 1;
    const VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                           .queueFamilyIndex = gpu->family,
                                           .queueCount = 1,
                                           .pQueuePriorities = &priority};
    const VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                     .pNext = &f->all,
                                     .queueCreateInfoCount = 1,
                                     .pQueueCreateInfos = &queue,
                                     .enabledExtensionCount = f->n_extensions,
                                     .ppEnabledExtensionNames = f->extensions};
    VkResult result = gpu->api.CreateDevice(gpu->physical, &info, NULL, &gpu->device);
    if (result != VK_SUCCESS) {
        gpu->device = NULL;
        return ellm_vulkan_failed(result, "opening it", error);
    }
    ellm_status status = ellm_vulkan_load_device(&gpu->api, gpu->device, error);
    if (status == ELLM_OK) {
        gpu->api.GetDeviceQueue(gpu->device, gpu->family, 0, &gpu->queue);
    }
    if (status == ELLM_OK && f->has_import) {
        gpu->get_host_pointer = (PFN_vkGetMemoryHostPointerPropertiesEXT)gpu->api.GetDeviceProcAddr(
            gpu->device, "vkGetMemoryHostPointerPropertiesEXT");
    }
    return status;
}

/* What makes a driver compile otherwise, or another device: the UUID is of its pipelines' cache. */
static void name_driver(const VkPhysicalDeviceProperties *p, char driver[ELLM_GPU_DRIVER]) {
    int n = snprintf(driver, ELLM_GPU_DRIVER, "%08x:%08x:%08x:", (unsigned)p->vendorID, (unsigned)p->deviceID,
                     (unsigned)p->driverVersion);
    for (unsigned i = 0; i < VK_UUID_SIZE; i++) {
        n += snprintf(driver + n, (size_t)(ELLM_GPU_DRIVER - n), "%02x", (unsigned)p->pipelineCacheUUID[i]);
    }
}

ellm_status ellm_vulkan_pick(ellm_gpu *gpu, uint32_t needs, ellm_vulkan_features *features, ellm_error *error) {
    VkPhysicalDevice devices[ELLM_VULKAN_DEVICES];
    uint32_t n = ELLM_VULKAN_DEVICES;
    VkResult result = gpu->api.EnumeratePhysicalDevices(gpu->api.instance, &n, devices);
    if (result < VK_SUCCESS) {
        return ellm_vulkan_failed(result, "looking for GPUs", error);
    }
    char lacks[300] = "no device";
    size_t written = 0;
    int best = -1;
    ellm_vulkan_device chosen = {.family = 0};
    for (uint32_t i = 0; i < n; i++) {
        ellm_vulkan_device device;
        const char *lack = ellm_vulkan_look(&gpu->api, devices[i], needs, &device);
        if (lack != NULL) {
            int more = snprintf(lacks + written, sizeof lacks - written, "%s%.80s lacks %s", written > 0 ? ", " : "",
                                device.properties.deviceName, lack);
            written = more < 0 || (size_t)more >= sizeof lacks - written ? written : written + (size_t)more;
        } else if (ellm_vulkan_rank(&device) > best) {
            best = ellm_vulkan_rank(&device);
            chosen = device;
        }
    }
    if (best < 0) {
        return ellm_fail(error, ELLM_GPU_MISSING,
                         "no GPU here can run the bundle: %s; update its driver, or compile with --device cpu", lacks);
    }
    const VkPhysicalDeviceProperties *p = &chosen.properties;
    gpu->physical = chosen.physical;
    gpu->family = chosen.family;
    gpu->timestamp_bits = chosen.timestamp_bits;
    gpu->limits = p->limits;
    gpu->vendor = p->vendorID;
    gpu->kind = p->deviceID;
    memcpy(gpu->cache_uuid, p->pipelineCacheUUID, sizeof gpu->cache_uuid);
    gpu->most_allocation = chosen.most_allocation;
    gpu->sizes_subgroups = ellm_vulkan_can_size(&chosen);
    gpu->info.is_processor = p->deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
    gpu->is_shared = gpu->info.is_processor || p->deviceType == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU;
    memcpy(gpu->info.name, p->deviceName, sizeof gpu->info.name);
    name_driver(p, gpu->info.driver);
    *features = chosen.features;
    if (gpu->source.real && gpu->info.is_processor) {
        return ellm_fail(error, ELLM_GPU_MISSING, "the only GPU that Vulkan finds is %.200s, which is this processor",
                         gpu->info.name);
    }
    return ELLM_OK;
}

ellm_status ellm_vulkan_open_device(ellm_gpu *gpu, uint32_t needs, ellm_vulkan_features *features, ellm_error *error) {
    ellm_vulkan_want(features, needs); /* only what kernels need is turned on */
    gpu->api.GetPhysicalDeviceMemoryProperties(gpu->physical, &gpu->memories);
    enable_import(gpu, features);
    return create(gpu, features, error);
}
