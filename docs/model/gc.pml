/* The collector's protocol, as casstore implements it. Read README.md first: what is modelled, why the
 * reductions lose nothing, which function each step is, and the results.
 *
 * One authoritative state stands for the log folded up to its head (apply is a function of the log). A commit
 * is one atomic step: casstore builds the records on the state at the head and the put succeeds only if the
 * head has not moved (Engine._attempt). What a process decided *earlier* is all it can be wrong about: the
 * packs it uploaded, the digests it found present, the lists it made. Nothing waits for a clock: any pack
 * nobody committed may be condemned at any moment, any ended pack deleted at any moment, any version in
 * the trash purged at any moment; retries, collections, truncations and sweeps are not counted.
 *
 * Switches: NW writers (1, 2) with roots R0, R1; NGC collectors; NP packs that may exist at a time;
 * RESTORE, TRUNC, PINS, UNDO, ROT: extensions; TRASH_ALL: the writers' versions are deleted too.
 * Mutations: see README.md; each removes one rule.
 */
#ifndef NW
#define NW 1
#endif
#ifndef NGC
#define NGC 1
#endif
#ifndef NP
#define NP 5
#endif
#ifndef R0
#define R0 N
#endif
#ifndef R1
#define R1 A
#endif

/* digests: N is a tree node whose only child is A; B is kept by a version that is never deleted */
#define A 0
#define N 1
#define B 2
#define bA 1
#define bN 2
#define bB 4
#define NONE NP

/* versions 0 and 1 are the writers'; V is there from the start, with root N, and is deleted */
#define V 2
/* vst[]: */
#define ABSENT 0
#define LIVE 1
#define TRASHED 2
#define PURGED 3
/* pst[]: what the log says of a pack. FORGOTTEN: it ended below the floor, the log does not know it any more */
#define UNKNOWN 0
#define PLACED 1
#define ENDED 2
#define FORGOTTEN 3
/* phys[]: */
#define NEVER 0
#define THERE 1
#define GONE 2

byte phys[NP], cont[NP], pst[NP];
byte loc[3] = NONE;
byte rc[3];
bool kn;                        /* the row of N in the table of nodes: its children are known and counted */
byte vst[3];
byte done;                      /* writers that have finished, failed or died */

/* sessions: writers, then the undo */
#define UN NW
#define NS (NW+1)
byte wp[NS] = NONE, wq[NS] = NONE;    /* packs a session uploaded and has not committed */
bool cut[NS];                   /* the log was truncated beyond what the session has replayed */
byte gg[NGC] = NONE, gq[NGC] = NONE;  /* the pack a collector empties, the pack it copied into */
bool gcut[NGC];
byte pin;                       /* 0 free, 1 held, 2 expired and released, its holder does not know */
byte rp = NONE;                 /* the pack in which the bytes of A are damaged */
bool rotted, seen, bad;         /* it happened; a scrub found it; A is quarantined now */
byte late = NONE;               /* the pack somebody is about to unlink (NAME_REUSE, UNDO_IN_PLACE) */

#define have(d)   (loc[d] != NONE)
#define bytes(d)  (have(d) && phys[loc[d]] == THERE && (cont[loc[d]] & (1<<(d))))
#define tree      (bytes(N) && bytes(A))
#define needs(v,root) (!(vst[v] == LIVE || vst[v] == TRASHED) || (root == N -> tree : bytes(root)))
#if NW > 1
#define SAFE assert(bytes(B) && needs(V,N) && needs(0,R0) && needs(1,R1) && (pin != 1 || tree))
#else
#define SAFE assert(bytes(B) && needs(V,N) && needs(0,R0) && (pin != 1 || tree))
#endif

#define is(p,d)   (loc[d] == (p))
#define placed(p) ((is(p,A) -> bA : 0) | (is(p,N) -> bN : 0) | (is(p,B) -> bB : 0))
#define livem(p)  (((is(p,A) && rc[A] > 0) -> bA : 0) | ((is(p,N) && rc[N] > 0) -> bN : 0) | ((is(p,B) && rc[B] > 0) -> bB : 0))
#define dead(p)   (placed(p) & ~livem(p) & 7)
/* anything in a live pack that is dead or a second copy is garbage; a damaged frame is left alone (Mover._copy) */
#ifdef COPY_UNVERIFIED
#define movable(p) true
#else
#define movable(p) (rp != (p) || !is(p,A) || rc[A] == 0)
#endif
#define collectable(p) (pst[p] == PLACED && livem(p) != cont[p] && movable(p))
#define droppable(d)   (have(d) && rc[d] == 0)
#define unknown(p)     (pst[p] == UNKNOWN || pst[p] == FORGOTTEN)
#ifdef SWEEP_NEW_ONLY
#define SWEEPS_FORGOTTEN 0
#else
#define SWEEPS_FORGOTTEN 1
#endif
#define sweepable(p)   (phys[p] == THERE && (pst[p] == UNKNOWN || (pst[p] == FORGOTTEN && SWEEPS_FORGOTTEN)))
#define deletable(p)   (phys[p] == THERE && pst[p] == ENDED)

#if NW > 1
#define held_w(p) (wp[0]==(p) || wq[0]==(p) || wp[1]==(p) || wq[1]==(p) || wp[UN]==(p) || wq[UN]==(p))
#else
#define held_w(p) (wp[0]==(p) || wq[0]==(p) || wp[UN]==(p) || wq[UN]==(p))
#endif
#if NGC > 1
#define held_g(p) (gg[0]==(p) || gq[0]==(p) || gg[1]==(p) || gq[1]==(p))
#define idle_g (gg[0] == NONE && gg[1] == NONE)
#else
#define held_g(p) (gg[0]==(p) || gq[0]==(p))
#define idle_g (gg[0] == NONE)
#endif
#define held(p) (held_w(p) || held_g(p) || late == (p))

/* one test for each pack */
#if NP == 4
#define ANY(f) (f(0) || f(1) || f(2) || f(3))
#elif NP == 5
#define ANY(f) (f(0) || f(1) || f(2) || f(3) || f(4))
#elif NP == 6
#define ANY(f) (f(0) || f(1) || f(2) || f(3) || f(4) || f(5))
#elif NP == 7
#define ANY(f) (f(0) || f(1) || f(2) || f(3) || f(4) || f(5) || f(6))
#else
#define ANY(f) (f(0) || f(1) || f(2) || f(3) || f(4) || f(5) || f(6) || f(7))
#endif
#define unused(p) (phys[p] == NEVER)
#ifdef NAME_REUSE
#define ROOM true
#else
#define ROOM ANY(unused)
#endif

#ifdef UNDO
#define KEEP_CONTENT 1
#else
#define KEEP_CONTENT 0
#endif

/* a name that nobody holds and whose bytes are gone is never met again: its number stands for a fresh name */
inline tidy() {
#ifndef NAME_REUSE
  _k = 0;
  do
  :: _k < NP ->
     if
     :: pst[_k] != PLACED && !held(_k) ->
        if
        :: phys[_k] == GONE -> phys[_k] = NEVER; pst[_k] = UNKNOWN; cont[_k] = 0; if :: rp == _k -> rp = NONE :: else fi
        :: phys[_k] == THERE && !KEEP_CONTENT -> cont[_k] = 0; if :: rp == _k -> rp = NONE :: else fi
        :: else
        fi
     :: else
     fi;
     _k++
  :: else -> break
  od;
#endif
  _k = 0
}
/* publish a pack under a name never used before */
inline upload(x, content) {
#ifdef NAME_REUSE
  x = content;                  /* named by content */
  if :: pst[x] == ENDED -> pst[x] = UNKNOWN :: else fi;
#else
  x = 0;
  do :: phys[x] != NEVER -> x++ :: else -> break od;
#endif
  phys[x] = THERE; cont[x] = content
}

inline release(d) {
  assert(rc[d] > 0);            /* apply: a count below zero stops the world */
  rc[d]--
}

/* AddPack: digests that are not indexed get their place; a quarantined one gets a new place and keeps its count */
inline add_pack(p) {
  if :: (cont[p] & bA) && !have(A) -> loc[A] = p; rc[A] = 0
#ifndef HEAL_IGNORED
     :: (cont[p] & bA) && have(A) && bad -> loc[A] = p; bad = false;
#ifdef HEAL_RESETS_COUNT
        rc[A] = 0
#endif
#endif
     :: else
  fi;
  if :: (cont[p] & bN) && !have(N) -> loc[N] = p; rc[N] = 0 :: else fi;
  if :: (cont[p] & bB) && !have(B) -> loc[B] = p; rc[B] = 0 :: else fi;
  pst[p] = PLACED
}

inline drop(mask) {
  if
  :: (mask) & bN ->
     loc[N] = NONE; rc[N] = 0;
#ifndef EAGER_DEC
     if :: kn -> release(A) :: else fi;
#endif
     kn = false
  :: else
  fi;
  if :: (mask) & bA -> loc[A] = NONE; rc[A] = 0; bad = false :: else fi;
  if :: (mask) & bB -> loc[B] = NONE; rc[B] = 0 :: else fi
}

/* ---------- a writing session: casstore/writer.py; with s == UN the undo of a purge ---------- */
#define mine (((wp[s] != NONE) -> cont[wp[s]] : 0) | ((wq[s] != NONE) -> cont[wq[s]] : 0))
#define taken(p) ((p) != NONE && (pst[p] == ENDED || pst[p] == PLACED))
#define lacks_A (!have(A) || bad)
#define missing(root) ((root == N) -> ((!kn -> bN : 0) | ((!kn && !have(A)) -> bA : 0) | (bad -> bA : 0)) \
                                    : (lacks_A -> bA : 0))
#ifdef CLAIM_DAMAGED
#define damaged_claim false
#else
#define damaged_claim (bad && !(mine & bA))
#endif
/* what a commit relies on is there or comes with it. Apply asks no more; the author, of damage, too */
#define relied(root) (!taken(wp[s]) && !taken(wq[s]) && \
   ((root == N) -> (((mine & bN) || (kn && have(N))) && (kn || (mine & bA) || have(A))) : ((mine & bA) || have(A))))
#define copy_of(d,p) (phys[p] == THERE && (cont[p] & (1<<(d))))
#define copy_N(p) copy_of(N,p)
#define copy_A(p) copy_of(A,p)
/* the undo has no source but packs that are still there */
#define source(m) (s != UN || ((!((m) & bN) || ANY(copy_N)) && (!((m) & bA) || ANY(copy_A))))
#ifdef UNDO_UNCHECKED
#define must_rely (s != UN)
#else
#define must_rely true
#endif
#define wanted (s != UN || vst[V] == PURGED)

proctype session(byte s; byte root) {
  byte need, x, _k;
  bool ok, dup;
again:
  if
  :: atomic { s != UN -> goto out }                       /* dies, or gives up */
  :: atomic { s == UN && (wp[s] != NONE || wq[s] != NONE) -> wp[s] = NONE; wq[s] = NONE; cut[s] = false; tidy(); goto again }
  :: atomic {
       ROOM && wanted -> d_step {
       /* catch up. If the log was truncated beyond the base, the end of our packs may have been forgotten. */
#if !defined(NO_PACKS_SINCE)
       if :: cut[s] -> wp[s] = NONE; wq[s] = NONE :: else fi;
#endif
       cut[s] = false;
       if :: taken(wp[s]) -> wp[s] = NONE :: else fi;
       if :: taken(wq[s]) -> wq[s] = NONE :: else fi;
       need = missing(root) & ~mine & 7;
#ifdef UNDO_UNCHECKED
       if :: s == UN -> need = 0 :: else fi;
#endif
       if
       :: need != 0 && source(need) ->
          upload(x, need);
          if :: wp[s] == NONE -> wp[s] = x :: else -> assert(wq[s] == NONE); wq[s] = x fi
       :: else
       fi;
       need = 0; x = 0;
       tidy() }
     }
  fi;
put:
  if
  :: atomic { s != UN -> goto out }                       /* dies: an orphan */
  :: atomic { s == UN -> wp[s] = NONE; wq[s] = NONE; cut[s] = false; tidy(); goto again }
#ifdef TRUNC
  :: atomic { !cut[s] -> cut[s] = true; goto put }        /* somebody truncates the log beyond our base */
#endif
  :: atomic {
       ok = false; dup = false;
#ifdef TRUNC
       if
       :: cut[s] ->
#ifdef NO_FLOORCHK
          if :: s != UN -> assert(vst[s] != ABSENT); goto out :: else fi  /* took a freed name for a success */
#elif defined(CHECK_AT_PUT_ONLY)
          cut[s] = false                                  /* caught up without noticing the gap */
#elif defined(AUTHOR_BLIND)
          if :: wp[s] == NONE && wq[s] == NONE -> goto again :: else fi
#else
          goto again                                      /* floor >= slot: our put was void */
#endif
       :: else
       fi;
#endif
#ifndef NO_REBASE
       if :: must_rely && (!relied(root) || damaged_claim) && !(s != UN && vst[s] != ABSENT) -> goto again :: else fi;
#endif
       /* the segment is in the log: apply */
       d_step {
       if
#ifndef BLIND_DELTA
       :: s != UN && vst[s] != ABSENT -> ok = true; dup = true           /* the txid is known */
#endif
       :: s == UN && vst[V] != PURGED -> skip                            /* void */
#ifdef AUTHOR_BLIND
       :: cut[s] && (wp[s] != NONE || wq[s] != NONE) -> skip             /* packs_since < floor: void */
#endif
#ifndef NO_VALIDATE
       :: must_rely && !relied(root) -> skip                             /* void */
#endif
       :: else -> ok = true
       fi;
       if
       :: ok && !dup ->
          if :: wp[s] != NONE -> add_pack(wp[s]) :: else fi;
          if :: wq[s] != NONE -> add_pack(wq[s]) :: else fi;
          if :: root == N && have(N) && !kn -> kn = true; rc[A]++ :: else fi;   /* AddNode; again: no effect */
          rc[root]++;
          if :: s == UN -> vst[V] = TRASHED :: else -> vst[s] = LIVE fi;
          wp[s] = NONE; wq[s] = NONE;
          assert(!(seen && have(A) && loc[A] == rp))      /* nothing new on bytes known to be damaged */
       :: else
       fi;
       SAFE;
       tidy() }
       if
       :: s == UN -> goto again
       :: s != UN && ok -> goto acknowledge
       :: s != UN && ok && !dup -> goto again             /* the reply is lost: submits again */
#ifdef ACK_EARLY
       :: s != UN && !ok -> goto acknowledge
#else
       :: s != UN && !ok -> goto again
#endif
       fi
     }
  fi;
acknowledge:
  assert(vst[s] != ABSENT);
out:
  atomic { wp[s] = NONE; wq[s] = NONE; cut[s] = false; ok = false; dup = false; done++; tidy() }
}

/* ---------- the collector: casstore/gc/retire.py ---------- */
#define choice(p) (collectable(p) && (livem(p) == 0 || ROOM))
#define CHOOSE(p) :: choice(p) -> g = p

proctype collector(byte c) {
  byte g, q, keep, gone, _k;
  bool valid;
end_loop:
  if
  /* _drop_nodes: Drop alone; the pack stays as it is */
  :: atomic { droppable(N) -> gone = bN }
  :: atomic { droppable(A) -> gone = bA }
  /* _retire_whole, _repack */
  :: atomic {
       if
       CHOOSE(0)
       CHOOSE(1)
       CHOOSE(2)
       CHOOSE(3)
#if NP > 4
       CHOOSE(4)
#endif
#if NP > 5
       CHOOSE(5)
#endif
#if NP > 6
       CHOOSE(6)
#endif
#if NP > 7
       CHOOSE(7)
#endif
       fi;
       d_step {
       gg[c] = g; keep = livem(g); gone = dead(g);
       if :: keep != 0 -> upload(q, keep); gq[c] = q :: else fi;
#ifdef EARLY_UNLINK
       phys[g] = GONE; SAFE;
#endif
       g = 0; q = 0;
#ifndef NO_GC_REBASE
       keep = 0; gone = 0;
#endif
       }
     }
  fi;
commit:
  if
  :: atomic { gg[c] != NONE -> goto forgo }               /* dies: its copy is an orphan */
#ifdef TRUNC
  :: atomic { !gcut[c] && gq[c] != NONE -> gcut[c] = true; goto commit }
#endif
  :: atomic {
       valid = true;
#if defined(TRUNC) && !defined(AUTHOR_BLIND)
#if defined(NO_PACKS_SINCE) || defined(CHECK_AT_PUT_ONLY)
       gcut[c] = false;
#else
       if :: gcut[c] -> goto forgo :: else fi;
#endif
#endif
       d_step {
       g = gg[c]; q = gq[c];
#ifndef NO_GC_REBASE
       /* built on the state at the head (_droppable, _dead_in, _still_right) */
       if
       :: g == NONE -> if :: !((gone & bN) && droppable(N)) && !((gone & bA) && droppable(A)) -> valid = false :: else fi
       :: else ->
          keep = placed(g) & ((q != NONE) -> cont[q] : 0);
          gone = dead(g) & ~keep & 7;
          if :: pst[g] != PLACED || (q != NONE && !unknown(q)) -> valid = false :: else fi;
#ifndef GC_SHORT
          if :: (keep | gone) != placed(g) -> valid = false :: else fi
#endif
       fi;
#endif
       /* apply */
#ifndef NO_VALIDATE
#ifndef DROP_UNCHECKED
       if :: (gone & bN) && !droppable(N) -> valid = false :: else fi;
       if :: (gone & bA) && !droppable(A) -> valid = false :: else fi;
#endif
       if
       :: g != NONE ->
#ifndef RETIRE_UNCHECKED
          if :: (keep & placed(g)) != keep || ((keep | gone) & placed(g)) != placed(g) -> valid = false :: else fi;
#endif
          if :: pst[g] != PLACED || (q != NONE && !unknown(q)) -> valid = false :: else fi
       :: else
       fi;
#endif
#ifdef AUTHOR_BLIND
       if :: gcut[c] -> valid = false :: else fi;         /* packs_since < floor */
#endif
       if
       :: valid ->
          if :: q != NONE -> add_pack(q) :: else fi;
          drop(gone);
          if :: keep & bA -> loc[A] = q;
#ifdef COPY_UNVERIFIED
                if :: rp == g -> rp = q; bad = false :: else fi
#endif
             :: else fi;
          if :: keep & bN -> loc[N] = q :: else fi;
          if :: keep & bB -> loc[B] = q :: else fi;
          if :: g != NONE -> pst[g] = ENDED :: else fi
       :: else
       fi;
       SAFE;
       gg[c] = NONE; gq[c] = NONE; gcut[c] = false; g = 0; q = 0; keep = 0; gone = 0; valid = false;
       tidy() }
       goto end_loop
     }
  fi;
forgo:
  atomic { gg[c] = NONE; gq[c] = NONE; gcut[c] = false; g = 0; q = 0; keep = 0; gone = 0; valid = false; tidy() }
  goto end_loop
}

/* ---------- everything that is one step: deletion by users, orphans, unlinking, rot, forgetting ---------- */
#define CONDEMN(p) :: sweepable(p) -> x = p
#define UNLINK(p)  :: deletable(p) -> x = p
#define FORGET(p)  :: forgettable(p) -> x = p
#if NW > 1
#define all_cut(p) ((!(wp[0]==(p) || wq[0]==(p)) || cut[0]) && (!(wp[1]==(p) || wq[1]==(p)) || cut[1]))
#else
#define all_cut(p) (!(wp[0]==(p) || wq[0]==(p)) || cut[0])
#endif
#define undo_cut(p) (!(wp[UN]==(p) || wq[UN]==(p)) || cut[UN])
#if NGC > 1
#define gc_cut(p) ((gq[0] != (p) || gcut[0]) && (gq[1] != (p) || gcut[1]))
#else
#define gc_cut(p) (gq[0] != (p) || gcut[0])
#endif
#ifdef FORGET_EARLY
#define confirmed(p) true
#else
#define confirmed(p) (phys[p] == GONE)
#endif
/* whoever still holds the name was truncated away, or has replayed its end and does not use it */
#define forgettable(p) (pst[p] == ENDED && confirmed(p) && (held(p) || phys[p] == THERE) \
                        && all_cut(p) && undo_cut(p) && gc_cut(p))

#if NP > 4
#define X4(m) m(4)
#else
#define X4(m)
#endif
#if NP > 5
#define X5(m) m(5)
#else
#define X5(m)
#endif
#if NP > 6
#define X6(m) m(6)
#else
#define X6(m)
#endif
#if NP > 7
#define X7(m) m(7)
#else
#define X7(m)
#endif
#define EACH(m) m(0) m(1) m(2) m(3) X4(m) X5(m) X6(m) X7(m)

#define root_is(r) ((vst[0] == LIVE || vst[0] == TRASHED) && R0 == r)
#if NW > 1
#define root_too(r) ((vst[1] == LIVE || vst[1] == TRASHED) && R1 == r)
#else
#define root_too(r) 0
#endif
#define quiet(p) (phys[p] == THERE && (pst[p] != PLACED || (movable(p) && livem(p) != cont[p])))
#define busy(p)  (sweepable(p) || deletable(p) || collectable(p))
#define holds_none(s) (wp[s] == NONE && wq[s] == NONE)

#ifdef PIN_UNCHECKED
#define pinnable true
#else
#define pinnable (kn && have(N))
#endif

proctype world() {
  byte x, _k;
end_world:
  do
  /* catalogue.py: trash, restore, purge; each conditional on the state it finds */
  :: atomic { vst[V] == LIVE -> vst[V] = TRASHED }
#ifdef RESTORE
  :: d_step { vst[V] == TRASHED -> vst[V] = LIVE; SAFE }
#endif
  :: d_step { vst[V] == TRASHED -> vst[V] = PURGED; release(N);
#ifdef EAGER_DEC
       if :: rc[N] == 0 -> release(A) :: else fi;
#endif
       SAFE }
#ifdef TRASH_ALL
  :: d_step { vst[0] == LIVE -> vst[0] = PURGED; release(R0); SAFE }
#if NW > 1
  :: d_step { vst[1] == LIVE -> vst[1] = PURGED; release(R1); SAFE }
#endif
#endif
  /* reclaim.py: condemn_orphans; of a writer that is alive, too */
  :: atomic { if EACH(CONDEMN) fi;
#ifdef NO_CONDEMN
       d_step { phys[x] = GONE; SAFE; x = 0; tidy() }
#else
       d_step { pst[x] = ENDED; SAFE; x = 0; tidy() }
#endif
     }
  /* reclaim.py: reclaim, without grace */
#if defined(NAME_REUSE) || defined(UNDO_IN_PLACE)
  :: atomic { late == NONE && ANY(deletable) -> if EACH(UNLINK) fi; late = x; x = 0 }
  :: d_step { late != NONE -> phys[late] = GONE; late = NONE; SAFE; tidy() }
#else
  :: atomic { if EACH(UNLINK) fi; d_step { phys[x] = GONE; SAFE; x = 0; tidy() } }
#endif
#ifdef UNDO_IN_PLACE
  :: atomic { vst[V] == PURGED && !have(N) && !have(A) && pst[0] == ENDED && phys[0] == THERE ->
       d_step { pst[0] = PLACED; loc[N] = 0; loc[A] = 0; kn = true; rc[N] = 1; rc[A] = 1; vst[V] = TRASHED; SAFE } }
#endif
#ifdef TRUNC
  /* names of ended packs below the floor, once their bytes are gone */
  :: atomic { if EACH(FORGET) fi; d_step { pst[x] = FORGOTTEN; x = 0; tidy() } }
#endif
#ifdef PINS
  :: d_step { pin == 0 && pinnable -> pin = 1; rc[N]++; SAFE }                         /* Pin */
  :: d_step { pin == 1 -> pin = 0; release(N); SAFE }      /* Unpin by its holder */
  :: d_step { pin == 1 -> pin = 2; release(N); SAFE }      /* Unpin by the collector: it expired */
  :: d_step { pin == 2 -> pin = 0;                         /* and then by its holder: void */
#ifdef UNPIN_TWICE
       release(N);
#endif
       SAFE }
#endif
#ifdef ROT
  :: d_step { !rotted && have(A) -> rotted = true; rp = loc[A] }
  :: d_step { rotted && !bad && have(A) && rp == loc[A] -> bad = true; seen = true }   /* Quarantine */
#endif
  /* nothing is left to do: everything that is not needed is gone, and the counts are right */
  :: d_step { done == NW && holds_none(UN) && idle_g && late == NONE &&
         !droppable(A) && !droppable(N) && !ANY(busy) ->
       assert(!ANY(quiet));
       assert(rc[N] == root_is(N) + root_too(N) + (vst[V] == LIVE || vst[V] == TRASHED) + (pin == 1));
       assert(rc[A] == kn + root_is(A) + root_too(A));
       assert(kn == have(N) && rc[B] == 1);
       SAFE }
  od
}

init {
  atomic {
    phys[0] = THERE; cont[0] = 7; pst[0] = PLACED;
    loc[A] = 0; loc[N] = 0; loc[B] = 0; kn = true;
    rc[A] = 1; rc[N] = 1; rc[B] = 1; vst[V] = LIVE;
    run session(0, R0);
#if NW > 1
    run session(1, R1);
#endif
#ifdef UNDO
    run session(UN, N);
#endif
    run collector(0);
#if NGC > 1
    run collector(1);
#endif
    run world()
  }
}
