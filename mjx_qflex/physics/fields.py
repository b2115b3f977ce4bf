"""What a port makes of every field of MuJoCo's model and options: the list is meant to be complete.

A port reads a field, or requires that it holds its default (`audit.check` refuses a model by the
element's name), or the field moves nothing that is ported, and the list says why. A test walks
MuJoCo's own fields, so that a new release cannot add one unseen.
"""

from typing import NamedTuple

import mujoco

_DISABLE = mujoco.mjtDisableBit


class Default(NamedTuple):
    """A field that must hold its default, and what a model has where it does not."""

    value: float
    what: str
    unless: int = 0  # the bit of `<flag>` that takes away what the field would do


# Fields that must hold their default on every element.
DEFAULTS = {
    "body_gravcomp": Default(0, "gravity compensation"),
    "body_plugin": Default(-1, "a plugin"),
    "dof_frictionloss": Default(0, "dry friction", _DISABLE.mjDSBL_FRICTIONLOSS),
    "tendon_frictionloss": Default(0, "dry friction", _DISABLE.mjDSBL_FRICTIONLOSS),
    "tendon_stiffness": Default(0, "a spring", _DISABLE.mjDSBL_SPRING),
    "tendon_stiffnesspoly": Default(0, "a spring", _DISABLE.mjDSBL_SPRING),
    "tendon_damping": Default(0, "damping", _DISABLE.mjDSBL_DAMPER),
    "tendon_dampingpoly": Default(0, "damping", _DISABLE.mjDSBL_DAMPER),
    "tendon_armature": Default(0, "armature"),
    "actuator_plugin": Default(-1, "a plugin"),
    "actuator_delay": Default(0, "a delay"),
    "actuator_ctrlnum": Default(1, "several controls"),
    "actuator_outnum": Default(1, "several forces"),
}

# What each part of the port reads.
READ = {
    "tree": """
        qpos0 qpos_spring nq nv nbody njnt neq opt
        body_parentid body_jntnum body_jntadr body_pos body_quat body_ipos body_iquat body_mass
        body_inertia body_invweight0
        jnt_type jnt_qposadr jnt_dofadr jnt_bodyid jnt_pos jnt_axis jnt_limited jnt_range jnt_margin
        jnt_solref jnt_solimp jnt_stiffness jnt_stiffnesspoly jnt_actfrclimited jnt_actfrcrange
        dof_armature dof_damping dof_dampingpoly dof_invweight0 dof_jntid
        eq_type eq_obj1id eq_obj2id eq_active0 eq_data
        actuator_armature actuator_damping actuator_dampingpoly
    """,
    "tendons, linear, fitting": """
        nsite ntendon site_bodyid site_pos tendon_adr tendon_num wrap_type wrap_objid wrap_prm
        actuator_trntype actuator_trnid actuator_gear
    """,
    "muscle, servos": """
        nu na nactuator actuator_dyntype actuator_gaintype actuator_biastype actuator_dynprm
        actuator_gainprm actuator_biasprm actuator_actlimited actuator_actrange actuator_actearly
        actuator_forcelimited actuator_forcerange actuator_ctrllimited actuator_ctrlrange
        actuator_acc0 actuator_lengthrange
    """,
    "contacts": """
        ngeom npair geom_type geom_condim geom_bodyid geom_priority geom_solmix geom_solref
        geom_solimp geom_size geom_pos geom_quat geom_friction geom_margin geom_gap
        geom_surfacevel geom_adhesion
        pair_dim pair_geom1 pair_geom2 pair_solref pair_solreffriction pair_solimp pair_margin
        pair_gap pair_adhesion pair_friction
    """,
    "audit": """
        nflex actuator_group tendon_limited tendon_range tendon_margin tendon_actfrclimited
    """,
}

# Why a port does without the others.
NOT_NEEDED = {
    "a recipe names its contacts": """
        exclude_signature geom_conaffinity geom_contype geom_dataid geom_plugin nexclude
    """,
    "couplings are rigid": "eq_solref eq_solimp",
    "a mocap body stays where the model puts it": "body_mocapid nmocap",
    "it matters only beside something that is refused": """
        jnt_actgravcomp geom_fluid tree_sleep_policy actuator_cranklength actuator_ctrlspec
        actuator_history actuator_historyadr nhistory dof_solref dof_solimp tendon_actfrcrange
        tendon_invweight0 tendon_lengthspring tendon_solref_fri tendon_solimp_fri
        tendon_solref_lim tendon_solimp_lim
    """,
    "flexes, of which there must be none": """
        efm0_L efm0_L_colind efm0_L_rowadr efm0_L_rownnz efm0_dofid efmC_perm flex_activelayers
        flex_bending flex_bendingadr flex_bvhadr flex_bvhnum flex_cellnum flex_centered
        flex_conaffinity flex_condim flex_contype flex_damping flex_dim flex_edge flex_edgeadr
        flex_edgedamping flex_edgeequality flex_edgeflap flex_edgenum flex_edgestiffness
        flex_elem flex_elemadr flex_elemdataadr flex_elemedge flex_elemedgeadr flex_elemlayer
        flex_elemnum flex_elemtexcoord flex_flatskin flex_friction flex_gap flex_group
        flex_interp flex_margin flex_matid flex_node flex_node0 flex_nodeadr flex_nodebodyid
        flex_nodenum flex_passive flex_priority flex_radius flex_rgba flex_rigid
        flex_selfcollide flex_shell flex_shelldataadr flex_shellnum flex_size flex_solimp
        flex_solmix flex_solref flex_stiffness flex_stiffnessadr flex_texcoord flex_texcoordadr
        flex_vert flex_vert0 flex_vertadr flex_vertbodyid flex_vertedge flex_vertedgeadr
        flex_vertedgenum flex_vertmetric flex_vertnum flexedge_J_colind flexedge_J_rowadr
        flexedge_J_rownnz flexedge_invweight0 flexedge_length0 flexedge_rigid flexvert_J_colind
        flexvert_J_rowadr flexvert_J_rownnz nJfe nJfv nefm0L nefm0dof nefmCvert nflexbending
        nflexedge nflexelem nflexelemdata nflexelemedge nflexnode nflexshelldata nflexstiffness
        nflextexcoord nflexvert
    """,
    "the picture alone: cameras, lights, materials, colours, what users note": """
        actuator_user body_user cam_bodyid cam_fovy cam_intrinsic cam_ipd cam_mat0 cam_mode
        cam_output cam_pos cam_pos0 cam_poscom0 cam_projection cam_quat cam_resolution
        cam_sensorsize cam_targetbodyid cam_user geom_group geom_matid geom_rgba geom_user
        jnt_group jnt_user light_active light_ambient light_attenuation light_bodyid
        light_bulbradius light_castshadow light_cutoff light_diffuse light_dir light_dir0
        light_exponent light_intensity light_mode light_pos light_pos0 light_poscom0 light_range
        light_softness light_specular light_targetbodyid light_texid light_type mat_emission
        mat_metallic mat_reflectance mat_rgba mat_roughness mat_shininess mat_specular mat_texid
        mat_texrepeat mat_texuniform ncam nlight nmat nskin nskinbone nskinbonevert nskinface
        nskintexvert nskinvert ntex ntexdata nuser_actuator nuser_body nuser_cam nuser_geom
        nuser_jnt nuser_sensor nuser_site nuser_tendon nuserdata site_dataid site_group
        site_matid site_quat site_rgba site_sameframe site_size site_type site_user skin_boneadr
        skin_bonebindpos skin_bonebindquat skin_bonebodyid skin_bonenum skin_bonevertadr
        skin_bonevertid skin_bonevertnum skin_bonevertweight skin_face skin_faceadr skin_facenum
        skin_group skin_inflate skin_matid skin_pathadr skin_rgba skin_texcoord skin_texcoordadr
        skin_vert skin_vertadr skin_vertnum tendon_group tendon_matid tendon_rgba tendon_user
        tendon_width tex_adr tex_colorspace tex_contenttypeadr tex_data tex_height tex_nchannel
        tex_pathadr tex_type tex_width vis
    """,
    "meshes and height fields, which no ported contact touches": """
        hfield_adr hfield_data hfield_ncol hfield_nrow hfield_pathadr hfield_size mesh_bvhadr
        mesh_bvhnum mesh_extrema mesh_face mesh_faceadr mesh_facenormal mesh_facenum
        mesh_facetexcoord mesh_graph mesh_graphadr mesh_normal mesh_normaladr mesh_normalnum
        mesh_octadr mesh_octnum mesh_pathadr mesh_polyadr mesh_polymap mesh_polymapadr
        mesh_polymapnum mesh_polynormal mesh_polynum mesh_polyvert mesh_polyvertadr
        mesh_polyvertnum mesh_pos mesh_quat mesh_scale mesh_texcoord mesh_texcoordadr
        mesh_texcoordnum mesh_vert mesh_vertadr mesh_vertnum nhfield nhfielddata nmesh
        nmeshdegmax nmeshface nmeshgraph nmeshnormal nmeshpoly nmeshpolymap nmeshpolyvert
        nmeshtexcoord nmeshvert npolygonmax
    """,
    "trees of bounding volumes, which speed collisions up": """
        bvh_aabb bvh_child bvh_depth bvh_nodeid nbvh nbvhdynamic nbvhstatic noct oct_aabb
        oct_child oct_coeff oct_depth
    """,
    "sensors, keyframes and the user's own data: read from a state, never written to it": """
        key_act key_ctrl key_mpos key_mquat key_qpos key_qvel key_time nkey nnumeric
        nnumericdata nsensor nsensordata ntext ntextdata ntuple ntupledata numeric_adr
        numeric_data numeric_size sensor_adr sensor_cutoff sensor_datatype sensor_delay
        sensor_dim sensor_history sensor_historyadr sensor_interval sensor_intprm
        sensor_needstage sensor_noise sensor_objid sensor_objtype sensor_plugin sensor_refid
        sensor_reftype sensor_type sensor_user text_adr text_data text_size tuple_adr
        tuple_objid tuple_objprm tuple_objtype tuple_size
    """,
    "plugins, whose places on bodies and actuators must be empty": """
        nplugin npluginattr npluginstate plugin plugin_attr plugin_attradr plugin_stateadr
        plugin_statenum
    """,
    "names": """
        name_actuatoradr name_bodyadr name_camadr name_eqadr name_excludeadr name_flexadr
        name_geomadr name_hfieldadr name_jntadr name_keyadr name_lightadr name_matadr
        name_meshadr name_numericadr name_pairadr name_pluginadr name_sensoradr name_siteadr
        name_skinadr name_tendonadr name_texadr name_textadr name_tupleadr names names_map
        nnames nnames_map npaths paths signature
    """,
    "MuJoCo's compiler derives it from other fields, or it is an address or a size": """
        B_colind B_rowadr B_rownnz D_colind D_diag D_rowadr D_rownnz M_colind M_rowadr M_rownnz
        actuator_actadr actuator_actnum actuator_ctrladr actuator_length0 actuator_outadr
        body_bvhadr body_bvhnum body_conaffinity body_contype body_dofadr body_dofnum
        body_geomadr body_geomnum body_margin body_rootid body_sameframe body_simple
        body_subtreemass body_treeid body_weldid dof_M0 dof_Madr dof_bodyid dof_length
        dof_parentid dof_simplenum dof_treeid eq_objtype flg_adhesion flg_gravcomp
        flg_surfacevel geom_aabb geom_rbound geom_sameframe jnt_actuatorid mapD2M mapM2D mapM2M
        nB nC nD nJmom nJten nM narena nbuffer nconmax nemax ngravcomp njmax nout ntree nwrap
        pair_signature stat ten_J_colind ten_J_rowadr ten_J_rownnz tendon_actuatorid
        tendon_length0 tendon_treeid tendon_treenum tree_bodyadr tree_bodynum tree_dofadr
        tree_dofnum
    """,
}

# The same for `MjModel.opt`.
OPTION_DEFAULTS = {
    "density": Default(0, "fluid forces"),
    "viscosity": Default(0, "fluid forces"),
    "integrator": Default(mujoco.mjtIntegrator.mjINT_EULER, "an integrator other than Euler"),
}
OPTIONS_READ = {
    "tree": "gravity disableflags",
    "contacts": """
        cone impratio noslip_iterations enableflags o_margin o_solref o_solimp o_friction
    """,
    "audit": "disableactuator",
}
OPTIONS_NOT_NEEDED = {
    "the recipe gives its own": "timestep iterations ls_iterations",
    "how exactly, or in which way, the same problem is solved": """
        tolerance ls_tolerance noslip_tolerance ccd_tolerance ccd_iterations jacobian solver
        sdf_initpoints sdf_iterations
    """,
    "it matters only beside something that is refused": "wind sleep_tolerance",
    "for sensors alone": "magnetic",
}

# `<flag>`s that a port obeys, and those that do not matter to it; any other is refused.
FLAGS_OBEYED = (
    _DISABLE.mjDSBL_CONSTRAINT, _DISABLE.mjDSBL_EQUALITY, _DISABLE.mjDSBL_FRICTIONLOSS,
    _DISABLE.mjDSBL_LIMIT, _DISABLE.mjDSBL_CONTACT, _DISABLE.mjDSBL_SPRING,
    _DISABLE.mjDSBL_DAMPER, _DISABLE.mjDSBL_GRAVITY, _DISABLE.mjDSBL_CLAMPCTRL,
    _DISABLE.mjDSBL_EULERDAMP,
)  # fmt: skip
FLAGS_WITHOUT_EFFECT = (
    _DISABLE.mjDSBL_WARMSTART, _DISABLE.mjDSBL_FILTERPARENT, _DISABLE.mjDSBL_SENSOR,
    _DISABLE.mjDSBL_MIDPHASE, _DISABLE.mjDSBL_AUTORESET, _DISABLE.mjDSBL_NATIVECCD,
    _DISABLE.mjDSBL_ISLAND, _DISABLE.mjDSBL_MULTICCD,
)  # fmt: skip
ENABLED_OBEYED = (mujoco.mjtEnableBit.mjENBL_OVERRIDE,)
ENABLED_WITHOUT_EFFECT = (
    mujoco.mjtEnableBit.mjENBL_ENERGY,
    mujoco.mjtEnableBit.mjENBL_FWDINV,
    mujoco.mjtEnableBit.mjENBL_INVDISCRETE,
)


def treatments() -> tuple[dict[str, str], dict[str, str]]:
    """Returns what a port makes of each field of `MjModel`, and of each of `MjOption`."""
    return (
        _by_field(READ, DEFAULTS, NOT_NEEDED),
        _by_field(OPTIONS_READ, OPTION_DEFAULTS, OPTIONS_NOT_NEEDED),
    )


def _by_field(
    read: dict[str, str], defaults: dict[str, Default], not_needed: dict[str, str]
) -> dict[str, str]:
    found = {name: f"must be {rule.value}: {rule.what}" for name, rule in defaults.items()}
    for what, groups in (("read by ", read), ("", not_needed)):
        for group, names in groups.items():
            found |= {name: what + group for name in names.split()}
    return found
