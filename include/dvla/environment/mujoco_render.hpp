// Pictures of MuJoCo states without a screen: EGL or OSMesa, loaded with dlopen on first use, so that a
// program without cameras needs neither. MUJOCO_GL=egl|osmesa chooses; without it EGL is tried first, then
// OSMesa. One back end per process: MuJoCo keeps the GL functions that it found first.
//
// A GL context belongs to one thread at a time: a renderer makes it current on the calling thread, draws a row, and lets it go again. It has
// as many for frames as its look allows to draw at once, each made when it is first wanted, with textures and meshes of its own: Mesa
// locks what contexts share while it draws. What no camera sees is not drawn (mujoco/in_view.hpp). Frames for the model have no
// shadow map unless the model's look is asked for: it costs 5 to 20 times the rest. Pictures for people have one.
#pragma once

#include <dlfcn.h>
#include <mujoco/mujoco.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "dvla/core/error.hpp"
#include "dvla/core/field.hpp"
#include "dvla/environment/mujoco/guard.hpp"
#include "dvla/environment/mujoco/in_view.hpp"
#include "dvla/environment/mujoco/memory.hpp"

namespace dvla {

namespace detail {

/// An offscreen GL context that can be current on one thread at a time: (true) makes it so on the calling
/// thread, (false) lets it go. Copies are the same context, which goes with the last of them.
using GlContext = std::function<void(bool current)>;

/// `visible`: MuJoCo draws by the first back end whose symbols it finds among all that is loaded, so only by the one that works.
inline void* open_library(const char* library, const char* package, bool visible) {
  void* const handle = dlopen(library, RTLD_NOW | (visible ? RTLD_GLOBAL : RTLD_LOCAL));
  if (handle == nullptr)
    throw Error(std::string(library) +
                " cannot be loaded, so nothing can be drawn; install the Debian package " + package);
  return handle;
}
template <class Function>
Function symbol(void* handle, const char* name) {
  void* const address = dlsym(handle, name);
  if (address == nullptr) throw Error(std::string("the GL library lacks ") + name);
  return reinterpret_cast<Function>(address);
}

inline GlContext egl_context() {
  constexpr const char* package = "libegl1 (and libgl1-mesa-dri for drawing on the CPU)";
  void* const egl = open_library("libEGL.so.1", package, false);
  const auto address = symbol<void* (*)(const char*)>(egl, "eglGetProcAddress");
  const auto initialize = symbol<unsigned (*)(void*, int*, int*)>(egl, "eglInitialize");
  const auto bind = symbol<unsigned (*)(unsigned)>(egl, "eglBindAPI");
  const auto choose = symbol<unsigned (*)(void*, const int*, void**, int, int*)>(egl, "eglChooseConfig");
  const auto create = symbol<void* (*)(void*, void*, void*, const int*)>(egl, "eglCreateContext");
  const auto destroy = symbol<unsigned (*)(void*, void*)>(egl, "eglDestroyContext");
  const auto make_current = symbol<unsigned (*)(void*, void*, void*, void*)>(egl, "eglMakeCurrent");
  const auto release = symbol<unsigned (*)()>(egl, "eglReleaseThread");
  using Devices = unsigned (*)(int, void**, int*);
  using Platform = void* (*)(unsigned, void*, const int*);
  const auto devices = reinterpret_cast<Devices>(address("eglQueryDevicesEXT"));
  const auto platform = reinterpret_cast<Platform>(address("eglGetPlatformDisplayEXT"));
  if (devices == nullptr || platform == nullptr) throw Error("EGL offers no devices; try MUJOCO_GL=osmesa");
  void* found[16] = {};
  int count = 0;
  if (devices(16, found, &count) == 0) count = 0;
  constexpr unsigned device_platform = 0x313F, opengl = 0x30A2;
  constexpr std::array<int, 13> wanted = {0x3033, 0x0001,  // surface type: pbuffer
                                          0x3040, 0x0008,  // renderable: OpenGL
                                          0x3024, 8,       // red
                                          0x3023, 8,       // green
                                          0x3022, 8,       // blue
                                          0x3025, 24,      // depth
                                          0x3038};         // end
  for (int i = 0; i < count; ++i) {
    void* const display = platform(device_platform, found[i], nullptr);
    if (display == nullptr || initialize(display, nullptr, nullptr) == 0) continue;
    void* config = nullptr;
    int configs = 0;
    if (choose(display, wanted.data(), &config, 1, &configs) == 0 || configs < 1 || bind(opengl) == 0)
      continue;
    void* const made = create(display, config, nullptr, nullptr);
    if (made == nullptr) continue;
    const std::shared_ptr<void> context(made, [=](void* it) { destroy(display, it); });
    open_library("libEGL.so.1", package, true);
    return [=](bool current) {
      if (make_current(display, nullptr, nullptr, current ? context.get() : nullptr) == 0 && current)
        throw Error("EGL could not make its context current");
      // What EGL keeps of a thread must not go with the thread: at the program's end that is beside EGL's own end, and frees twice.
      if (!current) release();
    };
  }
  throw Error(
      "EGL finds no device that can draw; install the Debian package libgl1-mesa-dri or set "
      "MUJOCO_GL=osmesa");
}

inline GlContext osmesa_context() {
  void* const mesa = open_library("libOSMesa.so.8", "libosmesa6", true);
  const auto create = symbol<void* (*)(unsigned, int, int, int, void*)>(mesa, "OSMesaCreateContextExt");
  const auto destroy = symbol<void (*)(void*)>(mesa, "OSMesaDestroyContext");
  const auto make_current =
      symbol<unsigned char (*)(void*, void*, unsigned, int, int)>(mesa, "OSMesaMakeCurrent");
  const std::shared_ptr<void> context(create(0x1908 /* RGBA */, 24, 8, 0, nullptr), destroy);
  if (context == nullptr) throw Error("OSMesa could not make a context");
  // A default frame buffer of one pixel: MuJoCo draws into its own offscreen buffer.
  const auto pixel = std::make_shared<std::array<std::uint8_t, 4>>();
  return [=](bool current) {
    if (!current)
      make_current(nullptr, nullptr, 0x1401 /* bytes */, 0, 0);
    else if (make_current(context.get(), pixel->data(), 0x1401, 1, 1) == 0)
      throw Error("OSMesa could not make its context current");
  };
}

/// Makes contexts of the back end that draws in this process.
using GlBackEnd = GlContext (*)();

/// ", by OSMesa" or ", by EGL", once something has been drawn in this process; before that nothing.
inline std::atomic<const char*>& drawn_by_whom() {
  static std::atomic<const char*> name{""};
  return name;
}
inline std::string drawn_by() { return drawn_by_whom().load(); }

/// What MUJOCO_GL names, or the first that works; where that is not the first that was tried, a line on stderr says why. It stays:
/// MuJoCo's GL functions cannot be exchanged.
inline GlContext gl_context() {
  static const GlBackEnd chosen = []() -> GlBackEnd {
    const char* const wish = std::getenv("MUJOCO_GL");
    const std::string name = wish == nullptr ? "" : wish;
    if (!name.empty() && name != "egl" && name != "osmesa")
      throw ConfigError("MUJOCO_GL=" + name + " is not known; use egl or osmesa");
    std::string why;
    if (name != "osmesa") {
      try {
        (void)egl_context();
        drawn_by_whom() = ", by EGL";
        return egl_context;
      } catch (const Error& error) {
        if (name == "egl") throw;
        why = error.what();
      }
    }
    (void)osmesa_context();
    drawn_by_whom() = ", by OSMesa";
    if (!why.empty())
      std::fprintf(
          stderr, "dvla: OSMesa draws, on the CPU, because EGL does not (MUJOCO_GL=osmesa asks for it): %s\n",
          why.c_str());
    return osmesa_context;
  }();
  return chosen();
}

}  // namespace detail

/// What frames for a policy show, and how.
struct MujocoLook {
  std::vector<std::string> cameras{"top"};  ///< of the model; people's pictures show them side by side
  bool collision_shapes = true;             ///< geoms of group 0 are drawn
  int geometries = 200;                     ///< at most so many are drawn
  bool as_the_model = false;  ///< shadow map, multisampling and reflections as the model says; else none
  bool rows_up = false;       ///< row 0 is the lowest, as GL has it
  bool columns_back = false;  ///< column 0 is the rightmost
  int at_once = 1;            ///< rows are drawn, each with a GL context that has the model's textures
};

/// Draws states of one model. Thread-safe; see the top of the file.
class MujocoRenderer {
 public:
  MujocoRenderer(const mjModel& model, std::pmr::memory_resource& pool, MujocoLook look = {})
      : model_(model), pool_(pool), look_(std::move(look)), at_once_(std::max(look_.at_once, 1)) {
    frames_.reserve(static_cast<std::size_t>(at_once_));
  }
  MujocoRenderer(const MujocoRenderer&) = delete;
  MujocoRenderer& operator=(const MujocoRenderer&) = delete;

  /// Square frames [pixels, pixels, 3] of each camera, into row `row` of `out`'s [N, pixels, pixels, 3]; `pixels` is the same in all
  /// calls. `model` may have poses and colours of its own. Rows may be drawn from several threads at once.
  void frames(std::int64_t row, int pixels, std::span<const Field<std::uint8_t>> out, const mjModel& model,
              mjData& data) {
    Taken taken(*this, pixels);
    Canvas& canvas = *taken.canvas;
    const Current current(canvas.gl);
    canvas.show(model, data);
    for (std::size_t camera = 0; camera < out.size(); ++camera) {
      const std::span<std::uint8_t> rgb = out[camera].at(row).span();
      canvas.draw(model, data, camera, pixels, pixels, rgb);
      if (!look_.rows_up) turn_rows(rgb, pixels, pixels);
      if (look_.columns_back) turn_columns(rgb, pixels, pixels);
    }
  }

  /// What drawing frames takes in all, about: on the CPU, with Mesa 22.3, which keeps textures with their smaller copies.
  std::size_t drawing_bytes() const {
    constexpr std::size_t rest = std::size_t{220}
                                 << 20;  // shapes and compiled shaders; 190 to 340 MiB in LIBERO's scenes
    std::size_t bytes = rest;
    for (int i = 0; i < model_.ntex; ++i)
      bytes += static_cast<std::size_t>(model_.tex_width[i]) *
               static_cast<std::size_t>(model_.tex_height[i]) * 16 / 3;
    if (look_.as_the_model)
      bytes += std::size_t{4} * static_cast<std::size_t>(model_.vis.quality.shadowsize) *
               static_cast<std::size_t>(model_.vis.quality.shadowsize);
    return bytes * static_cast<std::size_t>(look_.at_once);
  }

  /// One picture with shadows and smooth edges, rgb [height, width, 3], row 0 on top: what the cameras see, side by side, and `caption`
  /// below it in as many lines as it takes, if it fits.
  void picture(const mjModel& model, mjData& data, int width, int height, std::span<std::uint8_t> rgb,
               std::string_view caption = {}) {
    if (width < 1 || height < 1 || width > 4096 || height > 4096 ||
        rgb.size() != static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3) {
      throw Error("render: rgb has " + std::to_string(rgb.size()) + " bytes; a picture of " +
                  std::to_string(width) + " x " + std::to_string(height) +
                  " wants width x height x 3, sides 1 .. 4096");
    }
    const std::lock_guard lock(picture_mutex_);
    if (!picture_ || picture_->width < width || picture_->height < height) {
      picture_.reset();
      picture_ = std::make_unique<Canvas>(model_, pool_, look_, width, height, 2048, 4);
    }
    const Current current(picture_->gl);
    picture_->show(model, data);
    picture_->draw_all(model, data, width, height, rgb, caption);
    turn_rows(rgb, width, height);
  }

 private:
  struct Canvas;
  /// A canvas for frames that nobody else draws on while this lives; waits for one where as many as may be are drawn on.
  struct Taken {
    Taken(MujocoRenderer& from, int pixels) : renderer(from) {
      std::unique_lock lock(from.mutex_);
      const auto wait = [&] {
        from.given_back_.wait(lock, [&] { return !from.frames_.empty() || from.made_ < from.at_once_; });
      };
      wait();
      if (from.frames_.empty()) {
        try {
          canvas = from.for_frames(pixels);
          ++from.made_;
          return;
        } catch (const Error& error) {
          if (from.made_ == 0) throw;
          from.at_once_ = from.made_;
          std::fprintf(stderr, "dvla: %d rows are drawn at once, and not %d: %s\n", from.made_,
                       from.look_.at_once, error.what());
        }
        wait();
      }
      canvas = std::move(from.frames_.back());
      from.frames_.pop_back();
    }
    ~Taken() {
      {
        const std::lock_guard lock(renderer.mutex_);
        renderer.frames_.push_back(std::move(canvas));
      }
      renderer.given_back_.notify_one();
    }
    Taken(const Taken&) = delete;
    Taken& operator=(const Taken&) = delete;
    MujocoRenderer& renderer;
    std::unique_ptr<Canvas> canvas;
  };

  std::unique_ptr<Canvas> for_frames(int pixels) const {
    const auto& quality = model_.vis.quality;
    const bool own = look_.as_the_model;
    return std::make_unique<Canvas>(model_, pool_, look_, pixels, pixels, own ? quality.shadowsize : 0,
                                    own ? quality.offsamples : 0);
  }

  struct Current {
    explicit Current(const detail::GlContext& context) : gl(context) { gl(true); }
    ~Current() { gl(false); }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;
    const detail::GlContext& gl;
  };

  /// A context with MuJoCo's scene and buffers in it.
  struct Canvas {
    Canvas(const mjModel& model, std::pmr::memory_resource& pool, const MujocoLook& wanted, int w, int h,
           int shadow_size, int samples)
        : width(w), height(h), reflections(shadow_size > 0), gl(detail::gl_context()) {
      const Current current(gl);
      detail::MujocoMemory::Scope memory(pool);
      mjModel look = model;  // shallow: only the visual settings are changed, and only for this call
      look.vis.global.offwidth = w;
      look.vis.global.offheight = h;
      look.vis.quality.shadowsize = shadow_size;
      look.vis.quality.offsamples = samples;
      mjv_defaultScene(&scene);
      mjr_defaultContext(&context);
      mjv_defaultOption(&option);
      mjv_defaultCamera(&camera);
      option.geomgroup[0] = wanted.collision_shapes;
      camera.type = mjCAMERA_FIXED;
      for (const std::string& name : wanted.cameras) {
        cameras.push_back(mj_name2id(&model, mjOBJ_CAMERA, name.c_str()));
        if (cameras.back() < 0) throw Error("the MuJoCo model has no camera named '" + name + "'");
      }
      auto call = [&] {
        mjv_makeScene(&model, &scene, wanted.geometries);
        mjr_makeContext(&look, &context, mjFONTSCALE_100);
        mjr_setBuffer(mjFB_OFFSCREEN, &context);
      };
      if (!detail::MujocoGuard::run(call)) {
        const std::string why = detail::MujocoGuard::error();
        clear();
        memory.roll_back();
        throw Error("MuJoCo cannot draw here: " + why);
      }
      if (context.currentBuffer != mjFB_OFFSCREEN) {
        clear();
        throw Error("the GL driver gives no offscreen buffer of " + std::to_string(w) + " x " +
                    std::to_string(h));
      }
      scene.flags[mjRND_SHADOW] = shadow_size > 0;
    }
    ~Canvas() {
      const Current current(gl);
      clear();
    }
    Canvas(const Canvas&) = delete;
    Canvas& operator=(const Canvas&) = delete;

    void clear() {
      mjr_freeContext(&context);
      mjv_freeScene(&scene);
    }

    /// The scene of a state, which all cameras show.
    void show(const mjModel& model, mjData& data) {
      camera.fixedcamid = cameras.front();
      auto call = [&] {
        // An infinite plane is drawn about the camera that the scene had before.
        mjv_updateCamera(&model, &data, &camera, &scene);
        mjv_updateScene(&model, &data, &option, nullptr, &camera, mjCAT_ALL, &scene);
      };
      if (!detail::MujocoGuard::run(call))
        throw Error(std::string("MuJoCo cannot draw: ") + detail::MujocoGuard::error());
      shapes.assign(scene.geoms, scene.geoms + scene.ngeom);
    }
    /// What one camera sees of it, row 0 the lowest.
    void draw(const mjModel& model, mjData& data, std::size_t which, int w, int h,
              std::span<std::uint8_t> rgb) {
      const mjrRect view{0, 0, w, h};
      auto call = [&] {
        see(model, data, which, view);
        mjr_readPixels(rgb.data(), nullptr, view, &context);
      };
      if (!detail::MujocoGuard::run(call))
        throw Error(std::string("MuJoCo cannot draw: ") + detail::MujocoGuard::error());
    }
    /// What all of them see, side by side, and a caption; row 0 the lowest.
    void draw_all(const mjModel& model, mjData& data, int w, int h, std::span<std::uint8_t> rgb,
                  std::string_view caption) {
      const std::string lines = wrapped(caption, w, h);
      const mjrRect whole{0, 0, w, h};
      const auto count = static_cast<int>(cameras.size());
      auto call = [&] {
        for (int i = 0; i < count; ++i) {
          const int left = w * i / count;
          see(model, data, static_cast<std::size_t>(i), {left, 0, w * (i + 1) / count - left, h});
        }
        if (!lines.empty())
          mjr_overlay(mjFONT_NORMAL, mjGRID_BOTTOMLEFT, whole, lines.c_str(), nullptr, &context);
        mjr_readPixels(rgb.data(), nullptr, whole, &context);
      };
      if (!detail::MujocoGuard::run(call))
        throw Error(std::string("MuJoCo cannot draw: ") + detail::MujocoGuard::error());
    }

    /// Draws what a camera sees, and of the scene's shapes only those. Calls MuJoCo, so it runs where its errors are guarded.
    void see(const mjModel& model, mjData& data, std::size_t which, const mjrRect& view) {
      camera.fixedcamid = cameras[which];
      mjv_updateCamera(&model, &data, &camera, &scene);
      mjv_makeLights(&model, &data, &scene);  // the headlight is the camera's
      scene.flags[mjRND_REFLECTION] = reflections;
      const detail::MujocoInView in_view(scene, shapes, view.width, view.height);
      scene.flags[mjRND_REFLECTION] = reflections && in_view.sees_mirror();
      scene.ngeom = 0;
      for (const mjvGeom& shape : shapes) {
        if (in_view.sees(model, shape)) scene.geoms[scene.ngeom++] = shape;
      }
      mjr_render(view, &scene, &context);
    }
    /// A caption in lines that fit, by words; empty where there are too many of them, or a word is too long.
    std::string wrapped(std::string_view caption, int w, int h) const {
      constexpr int margin = 16;
      const auto wide = [&](std::string_view text) {
        int sum = 0;
        for (const char each : text)
          if (const auto code = static_cast<unsigned char>(each); code < std::size(context.charWidth))
            sum += context.charWidth[code];
        return sum;
      };
      std::string lines;
      int line = 0, count = 1;
      while (!caption.empty()) {
        const std::string_view word = caption.substr(0, caption.find(' '));
        caption.remove_prefix(std::min(caption.size(), word.size() + 1));
        const bool first = lines.empty(), fits = line + wide(" ") + wide(word) <= w - margin;
        if (wide(word) > w - margin) return {};
        if (!first) lines += fits ? ' ' : '\n';
        count += !first && !fits ? 1 : 0;
        line = first || !fits ? wide(word) : line + wide(" ") + wide(word);
        lines += word;
      }
      return count * context.charHeight > h / 4 ? std::string() : lines;
    }

    int width, height;
    bool reflections;
    std::vector<mjvGeom> shapes{};  ///< of the scene
    detail::GlContext gl;
    mjvScene scene;
    mjrContext context;
    mjvOption option;
    mjvCamera camera;
    std::vector<int> cameras;
  };

  static void turn_rows(std::span<std::uint8_t> rgb, int width, int height) {
    const std::ptrdiff_t line = std::ptrdiff_t{width} * 3;
    for (std::ptrdiff_t low = 0, high = height - 1; low < high; ++low, --high)
      std::swap_ranges(rgb.begin() + low * line, rgb.begin() + (low + 1) * line, rgb.begin() + high * line);
  }
  static void turn_columns(std::span<std::uint8_t> rgb, int width, int height) {
    for (std::ptrdiff_t row = 0; row < height; ++row)
      for (std::ptrdiff_t left = row * width, right = left + width - 1; left < right; ++left, --right)
        std::swap_ranges(rgb.begin() + 3 * left, rgb.begin() + 3 * left + 3, rgb.begin() + 3 * right);
  }

  const mjModel& model_;
  std::pmr::memory_resource& pool_;
  MujocoLook look_;
  std::mutex mutex_;
  std::condition_variable given_back_;
  std::vector<std::unique_ptr<Canvas>> frames_;  // those that nobody draws on
  int at_once_, made_ = 0;                       // for frames
  std::mutex picture_mutex_;
  std::unique_ptr<Canvas> picture_;
};

}  // namespace dvla
