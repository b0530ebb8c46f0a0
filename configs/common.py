"""Every field an experiment has, with its default. Config files edit a copy."""

from ml_collections import config_dict

from mer_dg import methods

# Plain fusion and what is free: unimodal heads, modality dropout, both, late fusion.
# A comparison without them flatters whatever stands beside plain fusion.
BASELINES = ("erm", "heads", "md", "heads+md", "late")


def get_config() -> config_dict.ConfigDict:
  """The defaults; see configs/cooccurrence.py for an experiment."""
  c = config_dict.ConfigDict()
  # What is run. A target makes it one run with checkpoints; without one, every
  # target x method x seed is trained on the resident driver and tabled.
  c.target = ""  # Held-out domain; set by the config argument after the colon.
  c.targets = ()  # Held-out domains of the table; () is every domain.
  c.sources = ()  # Source domains; () is every domain but the target.
  # leave_one_domain_out; single_source: all ordered pairs of a source and a target;
  # in_domain: train on rows of the target itself, the upper bound.
  c.protocol = "leave_one_domain_out"
  c.method = "mer_kde"  # Of a single run; "a+b" composes two recipes.
  # Of the table; the first is what the others are compared with.
  c.methods = (*BASELINES, "mer_kde", "mer_logdet")
  c.seed = 0  # Of a single run: initial weights, data order, noise in the step.
  c.seeds = (0, 1, 2, 3, 4)  # Of the table.
  c.split_seed = 0  # Train/validation split; the same for every method.
  c.metric = "accuracy"  # Headline: accuracy or balanced_accuracy.
  # What chooses checkpoints and, in a search, settings: source_val; re-paired_val, on
  # validation rows with modalities re-paired within class (docs/evaluation.md).
  c.selection = "source_val"

  c.driver = "resident"  # Of a single run: resident (data on device) or stream.
  c.total_steps = 1_000
  c.batch_size = 0  # Rows over all sources; 0 is about 96, padded for tiny domains.
  c.log_every = 50  # Steps; divides eval_every.
  c.eval_every = 250  # Steps between evaluations, records and checkpoints.
  c.wave = 0  # Runs trained at once by the table; 0 picks by device.

  c.data = dict(
    name="npz",  # npz, av_digits, cooccurrence, epic or hac.
    path="",  # The .npz file, or the folder of the set.
    modalities=(),  # () is all, in the order of the file.
    # npz only: ("M=KIND", ...) for what is read wrongly; --config.data.kinds.M=KIND.
    kinds=(),
    val_fraction=0.2,  # Of each source domain, where the set brings no split.
    drop_unseen_classes=False,  # Drop target rows of classes that no source has.
    # Rows that test a target where the set brings a split: test, or all of them.
    target_rows="test",
    sync_augment=False,  # epic and hac only: cut video and flow at the same place.
    # epic and hac only: frames of another size than 256 as a prepared set stores them,
    # after JPEG; False: as they are decoded, which is what the references train on.
    reencode=True,
    audio="logmel",  # av_digits only: logmel, logmel_resampled or waveform.
    # cooccurrence only, see mer_dg/data/cooccurrence.py.
    cooccurrence=dict(
      num_classes=4,
      num_domains=4,
      strengths=(2.0, 2.0),  # Class separation over noise, one per modality.
      widths=(48, 32),  # Observed dimensions, one per modality.
      pairing=1.0,  # Probability that the nuisance pairing names the class.
      target_pairing="absent",  # In the target: absent or reversed.
      nuisance_scale=3.0,
      noise=(0.1, 0.1),  # Observation noise, one per modality.
      train_per_domain=400,
      val_per_domain=200,
      test_per_domain=500,
      seed=0,
    ),
  )

  c.network = dict(
    # auto by input rank; mlp, linear, conv; hust_cnn, sentiment_transformer; backbones.
    encoder="auto",
    fusion="concat",
    embedding_dim=64,  # Per modality.
    hidden_dim=128,  # Of the encoders.
    fusion_dim=128,  # Common width inside gated, film, lowrank, attention, bottleneck.
    classifier_dim=128,  # Hidden width behind the fusion.
    projector_dim=128,
    projection_dim=128,
    dropout=0.5,  # Of the classifier.
    embedding_dropout=0.0,
    input_clip=10.0,  # Largest scaled input, in robust standard deviations.
    compute_dtype="float32",  # Or bfloat16; parameters and losses stay float32.
  )

  # The published encoders of epic and hac (docs/encoders.md).
  published = dict(
    weights="",  # From data_prep.convert_checkpoint; "" is random initial weights.
    depths=(),  # Blocks of layer1..layer4; () is the published depth.
    width=64,  # Channels of the stem; 64 is the published width.
  )
  c.backbones = dict(
    bn_mode="frozen",  # frozen, layer4, or batch as the reference code has it.
    audio_layer4="pretrained",  # Or random, as in most reference code.
    trainable="layer4",  # Or all.
    remat=False,  # Recompute residual blocks in the backward pass.
    video=published,
    audio=dict(published),
    flow=dict(published),
  )
  # How the stream driver reads rows ahead; no number of a sound set depends on it.
  c.reader = dict(
    threads=8,  # 0 reads in the training thread.
    workers=0,  # Processes beside this one, each with its own threads.
    prefetch=8,  # Batches read ahead, per process; at least the threads.
    eval_batch=8,  # Rows per evaluation batch of epic and hac.
    max_damaged=0.01,  # Share of the clips that may be unreadable and are left out.
  )

  # Adam with coupled L2 (not AdamW), as in the reference code.
  c.optimizer = dict(lr=1e-3, weight_decay=1e-4, schedule="cosine")

  # A method is a recipe: which terms beside the fused cross-entropy, and how; "a+b" is
  # the terms of both. Every field is written out; mer_dg/methods has a page each.
  c.recipes = methods.recipes()

  # --mode=benchmark: a table for each set, protocol and subset of modalities.
  c.benchmark = dict(
    # {name: fields that differ from this config, in groups}; none is config.data alone.
    datasets=dict(),
    protocols=("leave_one_domain_out",),
    subsets="all",  # fused: every two or more modalities; every: single ones, too.
  )

  # Search before the table: the default, weight 0, and settings that fill the space
  # evenly; 0 trials is none, fewer than 16 say little.
  c.search = dict(
    trials=0,
    seed=0,  # Of the settings.
    seeds=(100, 101),  # Fresh seeds (above) are used for the table.
    # {method: {term, "network" or "optimizer": {number: (low, high)}}}, drawn
    # log-uniformly; a method that is not named takes the ranges of its terms.
    space=dict(),
  )
  return c
