// The functions of csrc/cuda/device.cuh for g++: runs the CUDA kernels on the CPU, for tests.
//
// Every CUDA thread is a fiber, all in one OS thread, so that a run is a function of the seed. At
// each barrier, shuffle or wait a fiber gives way; which goes on next, and whether a bulk copy
// arrives at once or as late as it can, is drawn at random: a missing barrier or wait shows as a
// wrong result. Shared memory begins as NaN. A deadlock is an error, not a hang; so is what the
// device would not survive.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "../../csrc/cpu/numbers.h"

#define FC_DEVICE inline
#define FC_GLOBAL(threads, blocks) void
#define FC_ARGS const

struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
template <typename T> T __ldg(const T *p) { return *p; }
inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline void sincospif(float v, float *sine, float *cosine) {
  *sine = static_cast<float>(std::sin(M_PI * static_cast<double>(v)));
  *cosine = static_cast<float>(std::cos(M_PI * static_cast<double>(v)));
}

struct EmulatedIndex { uint32_t x; };
inline EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

struct Barrier {
  uint32_t expected = 0, arrived = 0;
  uint64_t generation = 0;
};

// An mbarrier of arrival count one.
struct Arrivals {
  bool arrived = false;
  int64_t bytes = 0;
  uint32_t phase = 0;

  void settle() {
    if (arrived && bytes == 0) arrived = false, ++phase;
  }
};

struct Block {
  uint32_t index, rank, live = 0;  // threads that have not ended
  std::unique_ptr<unsigned char[]> memory;
  unsigned char *shared;  // aligned as on the device
  Barrier barrier;
  std::vector<Barrier> warps;
  std::vector<uint64_t> lanes[2];  // what shuffles exchange, in turn
  std::map<const uint64_t *, Arrivals> arrivals;
};

// Entered by its context once, then by a jump: swapcontext asks the system for the signal mask.
struct Fiber {
  ucontext_t context;
  jmp_buf at;
  bool begun = false;
  Block *block = nullptr;
  uint32_t thread = 0;
  bool done = false;
  std::function<bool()> ready;
};

struct Copy {
  void *to;
  const void *from;
  uint32_t bytes;
  Arrivals *arrivals;
};

struct Machine {
  int multiprocessors = 4, shared_limit = 232448, major = 9, clusters = 2;
  std::mt19937_64 random{0};
  jmp_buf scheduler;
  Fiber *running = nullptr;
  std::vector<Block> blocks;  // those of one cluster
  Barrier cluster;
  std::vector<Copy> copies;  // under way
  std::function<void()> kernel;
  const char *failure = nullptr;  // the first of a launch
};

inline Machine &machine() {
  static Machine m;
  return m;
}

inline void fail(const char *what) {
  if (!machine().failure) machine().failure = what;
}

inline void wait_until(std::function<bool()> ready) {
  Machine &m = machine();
  Fiber *const mine = m.running;
  mine->ready = std::move(ready);
  if (!_setjmp(mine->at)) _longjmp(m.scheduler, 1);
}

inline void arrive_and_wait(Barrier &b) {
  const uint64_t now = b.generation;
  if (++b.arrived == b.expected) b.arrived = 0, ++b.generation;
  wait_until([&b, now] { return b.generation != now; });
}

inline void deliver(size_t k) {
  Machine &m = machine();
  const Copy copy = m.copies[k];
  m.copies.erase(m.copies.begin() + static_cast<std::ptrdiff_t>(k));
  std::memcpy(copy.to, copy.from, copy.bytes);
  copy.arrivals->bytes -= copy.bytes;
  copy.arrivals->settle();
}

inline void enter() {
  Machine &m = machine();
  m.kernel();
  m.running->done = true;
  --m.running->block->live;
  _longjmp(m.scheduler, 1);
}

inline void go_on(Fiber *f) {
  Machine &m = machine();
  m.running = f;
  threadIdx.x = f->thread, blockIdx.x = f->block->index;
  if (_setjmp(m.scheduler)) return;
  if (f->begun) _longjmp(f->at, 1);
  f->begun = true;
  setcontext(&f->context);
}

// Lets every thread of a block that can go on do so once, in another order each time; whether one
// did. (A full shuffle of thousands would be most of the run.)
inline bool run_once(std::vector<Fiber *> &waiting) {
  const uint64_t random = machine().random();
  std::vector<Fiber *> left;
  bool moved = false;
  for (size_t i = 0, size = waiting.size(); i < size; ++i) {
    Fiber *const f = waiting[(random / 2 + (random % 2 ? size - i : i)) % size];
    if (f->ready()) {
      go_on(f);
      moved = true;
    }
    if (!f->done) left.push_back(f);
  }
  waiting.swap(left);
  return moved;
}

// Runs the blocks of m.blocks together.
inline void run_blocks(uint32_t threads, unsigned char *stacks, size_t stack) {
  Machine &m = machine();
  std::vector<Fiber> fibers(m.blocks.size() * threads);
  for (size_t i = 0; i < fibers.size(); ++i) {
    Fiber &f = fibers[i];
    f.block = &m.blocks[i / threads];
    ++f.block->live;
    f.thread = static_cast<uint32_t>(i % threads);
    f.ready = [] { return true; };
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks + i * stack;
    f.context.uc_stack.ss_size = stack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, enter, 0);
  }
  std::vector<std::vector<Fiber *>> waiting(m.blocks.size());
  for (size_t i = 0; i < fibers.size(); ++i) waiting[i / threads].push_back(&fibers[i]);
  const auto ended = [&] {
    for (const auto &block : waiting)
      if (!block.empty()) return false;
    return true;
  };
  while (!ended()) {
    // One block after another, every second as far as it gets alone: others then lag far behind.
    const size_t first = m.random() % waiting.size();
    bool moved = false;
    for (size_t i = 0; i < waiting.size() && !moved; ++i) {
      auto &block = waiting[(first + i) % waiting.size()];
      moved = run_once(block);
      if (moved && m.random() % 2)
        while (run_once(block)) {
        }
    }
    if (moved) continue;
    if (m.copies.empty()) return fail("every thread waits");
    deliver(m.random() % m.copies.size());
  }
  if (!m.copies.empty()) fail("a block ended before a copy to it");
}

// One barrier is enough, because the next exchange has the other lanes.
template <typename T> T exchange(T v, uint32_t distance) {
  Block &b = *machine().running->block;
  const uint32_t thread = threadIdx.x;
  Barrier &warp = b.warps[thread / 32];
  std::vector<uint64_t> &lanes = b.lanes[warp.generation % 2];
  std::memcpy(&lanes[thread], &v, sizeof(T));
  arrive_and_wait(warp);
  std::memcpy(&v, &lanes[thread ^ distance], sizeof(T));
  return v;
}

}  // namespace emulator

inline void __syncthreads() {
  emulator::arrive_and_wait(emulator::machine().running->block->barrier);
}
template <typename T> T __shfl_xor_sync(uint32_t, T v, int distance) {
  return emulator::exchange(v, static_cast<uint32_t>(distance));
}
inline void atomicAdd(unsigned long long *p, unsigned long long v) { *p += v; }

namespace FA_ISA {

inline unsigned char *shared_memory() { return emulator::machine().running->block->shared; }

inline f16 half_of(uint16_t bits) {
  f16 v;
  std::memcpy(&v, &bits, 2);
  return v;
}
inline float half_to_float(f16 v) { return static_cast<float>(v); }
inline uint32_t half_bits(float v) {
  const f16 half = static_cast<f16>(v);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline uint32_t bf16_bits(float v) {  // v is finite
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pack_bf16(float a, float b) { return bf16_bits(a) | bf16_bits(b) << 16; }
inline uint32_t pack_f16(float a, float b) { return half_bits(a) | half_bits(b) << 16; }

constexpr uint32_t kFullWarp = 0xFFFFFFFFu;

inline void barrier_init(uint64_t *barrier) {
  emulator::machine().running->block->arrivals[barrier] = {};
}
inline void barrier_init_done() {}
inline void reads_before_copies() {}
inline emulator::Arrivals &arrivals_of(const uint64_t *barrier) {
  auto &known = emulator::machine().running->block->arrivals;
  if (!known.count(barrier)) emulator::fail("a barrier was used before it was initialised");
  return known[barrier];
}
inline void barrier_expect(uint64_t *barrier, uint32_t bytes) {
  emulator::Arrivals &a = arrivals_of(barrier);
  if (a.arrived) emulator::fail("a second arrival in one phase of a barrier");
  a.arrived = true, a.bytes += bytes;
  a.settle();
}
inline void barrier_wait(uint64_t *barrier, uint32_t parity) {
  const emulator::Arrivals &a = arrivals_of(barrier);
  emulator::wait_until([&a, parity] { return (a.phase & 1) != parity; });
}
inline void copy_bulk(const void *to, const void *from, uint32_t bytes, uint64_t *barrier) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes;
  if (all % 16 || !bytes) return emulator::fail("a bulk copy of other than whole 16 bytes");
  emulator::Machine &m = emulator::machine();
  m.copies.push_back({const_cast<void *>(to), from, bytes, &arrivals_of(barrier)});
  if (m.random() % 2) emulator::deliver(m.copies.size() - 1);
}

inline uint32_t cluster_rank() { return emulator::machine().running->block->rank; }
inline void sync_cluster() { emulator::arrive_and_wait(emulator::machine().cluster); }
inline double load_remote(const double *p, uint32_t rank) {
  emulator::Machine &m = emulator::machine();
  if (rank >= m.blocks.size() || !m.blocks[rank].live) {
    emulator::fail("the shared memory of a block that is not there was read");
    return 0;
  }
  const auto at = reinterpret_cast<const unsigned char *>(p) - m.running->block->shared;
  double v;
  std::memcpy(&v, m.blocks[rank].shared + at, sizeof(v));
  return v;
}

using Error = int32_t;

struct Launch {
  uint32_t blocks, threads, cluster, shared;
  void *stream;
};

namespace host {

struct Device { int multiprocessors = 0, shared_limit = 0, major = 0; };

inline int32_t runtime_version() { return 0; }
inline int32_t driver_version() { return 0; }
inline const char *error_name(Error) { return "emulated failure"; }
inline const char *error_text(Error) {
  const char *const text = emulator::machine().failure;
  return text ? text : "";
}

inline Error properties(int, Device *found) {
  const emulator::Machine &m = emulator::machine();
  *found = {m.multiprocessors, m.shared_limit, m.major};
  return 0;
}

struct Current {
  explicit Current(int) {}
  Error error = 0;
};

template <typename Args> Error launch(void (*kernel)(Args), const Launch &l, const Args &args) {
  emulator::Machine &m = emulator::machine();
  m.failure = nullptr;
  const uint32_t together = l.cluster ? l.cluster : 1;
  if (!l.blocks || l.blocks % together) emulator::fail("a grid that is not whole clusters");
  if (l.shared > (l.cluster ? static_cast<uint32_t>(m.shared_limit) : 48u * 1024))
    emulator::fail("more shared memory than a block has");
  const size_t stack = 64 * 1024, size = stack * together * l.threads;
  void *const stacks = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) emulator::fail("no memory for the threads' stacks");
  m.kernel = [&] { kernel(args); };
  blockDim.x = l.threads, gridDim.x = l.blocks;
  for (uint32_t first = 0; !m.failure && first < l.blocks; first += together) {
    m.blocks.clear();
    m.blocks.resize(together);
    m.cluster = {together * l.threads};
    for (uint32_t rank = 0; rank < together; ++rank) {
      emulator::Block &b = m.blocks[rank];
      b.index = first + rank, b.rank = rank;
      b.memory.reset(new unsigned char[l.shared + 128]);
      std::memset(b.memory.get(), 0xFF, l.shared + 128);
      b.shared = b.memory.get() + (128 - reinterpret_cast<uintptr_t>(b.memory.get()) % 128);
      b.barrier.expected = l.threads;
      b.warps.resize(l.threads / 32);
      for (emulator::Barrier &warp : b.warps) warp.expected = 32;
      for (auto &lanes : b.lanes) lanes.resize(l.threads);
    }
    emulator::run_blocks(l.threads, static_cast<unsigned char *>(stacks), stack);
  }
  m.copies.clear();
  munmap(stacks, size);
  return m.failure ? 1 : 0;
}

template <typename Args>
Error clusters_at_once(void (*)(Args), const Launch &l, int, int, int *clusters) {
  const emulator::Machine &m = emulator::machine();
  *clusters = l.shared <= static_cast<uint32_t>(m.shared_limit) ? m.clusters : 0;
  return 0;
}

}  // namespace host
}  // namespace FA_ISA

// Sets the order of threads and copies, and the device that is played.
extern "C" inline __attribute__((used, visibility("default"))) void fc_emulate(uint64_t seed,
                                                                               int32_t major,
                                                                               int32_t shared_limit,
                                                                               int32_t clusters) {
  emulator::Machine &m = emulator::machine();
  m.random.seed(seed);
  m.major = major, m.shared_limit = shared_limit, m.clusters = clusters;
}
